import { App } from "./App";

// Airflow's UI imports this file and then looks here for the component; it keeps it under the plugin's name.
Reflect.set(globalThis, "AirflowPlugin", App);

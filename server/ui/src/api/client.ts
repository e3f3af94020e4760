import createClient from "openapi-fetch";

import type { components, paths } from "./openapi";

type Schemas = components["schemas"];

export type Me = Schemas["Me"];
export type Overview = Schemas["Overview"];
export type Agent = Schemas["AgentItem"];
export type AgentDetail = Schemas["AgentDetail"];
export type AgentState = Schemas["AgentState"];
export type AgentAction = Schemas["BulkOrder"]["action"];
export type BulkOrder = Schemas["BulkOrder"];
export type BulkDone = Schemas["BulkDone"];
export type JobState = Schemas["JobState"];
export type Job = Schemas["JobItem"];
export type MetricsPoint = Schemas["MetricsPoint"];
export type JoinToken = Schemas["JoinTokenItem"];
export type JoinTokenOrder = Schemas["JoinTokenOrder"];
export type NewJoinToken = Schemas["NewJoinToken"];
export type Queue = Schemas["QueueItem"];

/** Why a request was not answered as wanted. `status` is 0 when there was no answer at all. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
    this.name = "ApiError";
  }
}

// Airflow may live below a path; its page says so in <base>.
const client = createClient<paths>({
  baseUrl: new URL("edge-agents/v1/admin", document.baseURI).href,
  fetch: async (request: Request) => {
    try {
      return await fetch(request);
    } catch {
      throw new ApiError(0, "Airflow's API server cannot be reached.");
    }
  },
});

const wordsFor = (status: number, error: unknown): string => {
  const detail = (error as { detail?: unknown } | undefined)?.detail;
  if (typeof detail === "string" && detail !== "") return detail;
  if (Array.isArray(detail)) {
    return detail
      .map((fault: { loc?: unknown[]; msg?: string }) => `${fault.loc?.slice(1).join(".") ?? ""}: ${fault.msg ?? ""}`)
      .join("; ");
  }
  if (status === 401) return "You are not logged in to Airflow any more. Load the page again.";
  if (status === 403) return "You have no right to do this.";
  return `The server answered with status ${status}.`;
};

/** Returns what the server has said. */
export const said = async <Data>(
  answer: Promise<{ data?: Data; error?: unknown; response: Response }>,
): Promise<Data> => {
  const { data, error, response } = await answer;
  if (!response.ok || data === undefined) throw new ApiError(response.status, wordsFor(response.status, error));
  return data;
};

export const api = client;

/** Where our pages are in Airflow's UI. */
export const BASE = "/plugin/edge-agents";

/** The path of a page, with what is to be chosen on it. */
export const pagePath = (page: string, chosen: Record<string, string> = {}): string => {
  const query = new URLSearchParams(chosen).toString();
  return `${BASE}/${page}${query === "" ? "" : `?${query}`}`;
};

export const agentPath = (name: string): string => pagePath(`agents/${encodeURIComponent(name)}`);

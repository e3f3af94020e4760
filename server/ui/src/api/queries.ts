import { keepPreviousData, QueryClient, useQuery } from "@tanstack/react-query";

import { type AgentState, ApiError, api, type JobState, said } from "./client";

const POLL_MS = 3_000;
const LONGEST_POLL_MS = 60_000;

export const queryClient = new QueryClient({
  defaultOptions: {
    queries: {
      gcTime: 60_000,
      placeholderData: keepPreviousData,
      // Hidden tabs rest; a tab that is looked at again asks at once.
      refetchIntervalInBackground: false,
      refetchOnWindowFocus: "always",
      // The next poll is the retry.
      retry: false,
    },
  },
});

type Polled = { state: { dataUpdatedAt: number; error: Error | null; errorUpdateCount: number } };

/** Polls; while it fails ever more slowly, so that each wait is as long as the trouble has lasted. */
const polling =
  (every = POLL_MS) =>
  ({ state: { dataUpdatedAt, error, errorUpdateCount } }: Polled) => {
    if (error === null) return every;
    const lasted = dataUpdatedAt === 0 ? every * 2 ** Math.min(errorUpdateCount, 10) : Date.now() - dataUpdatedAt;
    return Math.min(LONGEST_POLL_MS, Math.max(every, lasted));
  };

export type AgentFilter = {
  name?: string;
  queue?: string;
  state?: AgentState[];
  order_by?: string;
  limit?: number;
  offset?: number;
};

export type JobFilter = {
  state?: JobState[];
  queue?: string;
  agent?: string;
  limit?: number;
  offset?: number;
};

export const useMe = () =>
  useQuery({ queryFn: () => said(api.GET("/me")), queryKey: ["me"], refetchInterval: polling(60_000) });

export const useOverview = () =>
  useQuery({ queryFn: () => said(api.GET("/overview")), queryKey: ["overview"], refetchInterval: polling() });

export const useAgents = (query: AgentFilter) =>
  useQuery({
    queryFn: () => said(api.GET("/agents", { params: { query } })),
    queryKey: ["agents", query],
    refetchInterval: polling(),
  });

const askAgent = (name: string) => said(api.GET("/agents/{name}", { params: { path: { name } } }));

export const useAgent = (name: string) =>
  useQuery({
    queryFn: () => askAgent(name),
    queryKey: ["agent", name],
    placeholderData: undefined,
    refetchInterval: polling(),
  });

/** Waits for an agent that there may not be yet: `null` until there is. */
export const useAwaited = (name: string | null) =>
  useQuery({
    enabled: name !== null,
    queryFn: async () => {
      try {
        return await askAgent(name ?? "");
      } catch (error) {
        if (error instanceof ApiError && error.status === 404) return null;
        throw error;
      }
    },
    queryKey: ["awaited", name],
    placeholderData: undefined,
    refetchInterval: polling(1_500),
  });

export const useMetrics = (name: string, minutes: number) =>
  useQuery({
    queryFn: () => said(api.GET("/agents/{name}/metrics", { params: { path: { name }, query: { minutes } } })),
    queryKey: ["metrics", name, minutes],
    refetchInterval: polling(20_000),
  });

export const useEvents = (name: string) =>
  useQuery({
    queryFn: () => said(api.GET("/agents/{name}/events", { params: { path: { name } } })),
    queryKey: ["events", name],
    refetchInterval: polling(5_000),
  });

export const useAgentJobs = (name: string) =>
  useQuery({
    queryFn: () => said(api.GET("/agents/{name}/jobs", { params: { path: { name } } })),
    queryKey: ["agent-jobs", name],
    refetchInterval: polling(),
  });

export const useQueues = () =>
  useQuery({ queryFn: () => said(api.GET("/queues")), queryKey: ["queues"], refetchInterval: polling() });

export const useJobs = (query: JobFilter) =>
  useQuery({
    queryFn: () => said(api.GET("/jobs", { params: { query } })),
    queryKey: ["jobs", query],
    refetchInterval: polling(),
  });

import { keepPreviousData, QueryClient, useMutation, useQuery, useQueryClient } from "@tanstack/react-query";

import { type AgentState, api, type BulkOrder, type JobState, type JoinTokenOrder, said } from "./client";

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

export const useAgent = (name: string) =>
  useQuery({
    queryFn: () => said(api.GET("/agents/{name}", { params: { path: { name } } })),
    queryKey: ["agent", name],
    placeholderData: undefined,
    refetchInterval: polling(),
  });

/** The agents whose names fit, while one waits for them. */
export const useAwaited = (pattern: string) =>
  useQuery({
    queryFn: () => said(api.GET("/agents", { params: { query: { limit: 1_000, name: pattern } } })),
    queryKey: ["awaited", pattern],
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

/** What an order changes is to be seen at once. */
const useChange = <Variables, Data>(change: (variables: Variables) => Promise<Data>) => {
  const client = useQueryClient();
  return useMutation({
    mutationFn: change,
    onSettled: () => {
      // Not waited for: what is asked anew may take the page away on which the order was given.
      void client.invalidateQueries();
    },
  });
};

export const useOrder = () => useChange((body: BulkOrder) => said(api.POST("/agents/bulk", { body })));

/** What an order would do. */
export const usePreview = (body: BulkOrder, enabled: boolean) =>
  useQuery({
    enabled,
    queryFn: () => said(api.POST("/agents/bulk", { body: { ...body, dry_run: true } })),
    queryKey: ["preview", body],
    placeholderData: undefined,
    refetchOnWindowFocus: false,
  });

export const useCancelJob = () =>
  useChange(({ id, reason }: { id: string; reason: string | null }) =>
    said(api.POST("/jobs/{job_id}/cancel", { body: { reason }, params: { path: { job_id: id } } })),
  );

export const useJoinTokens = () =>
  useQuery({
    queryFn: () => said(api.GET("/join-tokens")),
    queryKey: ["join-tokens"],
    refetchInterval: polling(10_000),
  });

/** Airflow's teams, which change hardly ever. */
export const useTeams = () =>
  useQuery({ queryFn: () => said(api.GET("/teams")), queryKey: ["teams"], refetchInterval: polling(60_000) });

export const useMakeJoinToken = () => useChange((body: JoinTokenOrder) => said(api.POST("/join-tokens", { body })));

export const useRevokeJoinToken = () =>
  useChange((id: string) => said(api.DELETE("/join-tokens/{token_id}", { params: { path: { token_id: id } } })));

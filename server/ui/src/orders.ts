import type { Agent, AgentAction } from "./api/client";

type Order = {
  /** On the button. */
  readonly label: string;
  /** What it does, for somebody who has not done it before. */
  readonly explanation: string;
  readonly danger?: boolean;
  /** Why it makes no sense for this agent now; null: it does. */
  readonly refusal?: (agent: Agent) => string | null;
};

const inMaintenance = (agent: Agent) => agent.state.includes("maintenance") && agent.state !== "maintenance exit";

export const ORDERS: Record<AgentAction, Order> = {
  maintenance_on: {
    explanation: "It takes no new jobs until the maintenance ends, also after a restart. Running jobs go on.",
    label: "Start maintenance",
    refusal: (agent) => (inMaintenance(agent) ? "It is in maintenance." : null),
  },
  maintenance_off: {
    explanation: "It takes jobs again.",
    label: "End maintenance",
    refusal: (agent) => (inMaintenance(agent) ? null : "It is not in maintenance."),
  },
  drain: {
    explanation: "It is offered no new jobs until somebody resumes it. Running jobs go on.",
    label: "Drain",
    refusal: (agent) => (agent.overrides.drain ? "It is drained already." : null),
  },
  resume: {
    explanation: "It is offered jobs again.",
    label: "Resume",
    refusal: (agent) => (agent.overrides.drain ? null : "It is not drained."),
  },
  concurrency: {
    explanation: "How many slots the agent has. Running jobs go on, even if there are more of them.",
    label: "Change slots",
  },
  queues: {
    explanation: "Let the agent serve more queues than its own configuration says, or fewer.",
    label: "Change queues",
  },
  revoke: {
    danger: true,
    explanation: "The agent's credential is refused from now on. To come back, it has to be enrolled anew.",
    label: "Revoke",
  },
  delete: {
    danger: true,
    explanation: "The agent disappears from these pages, with its history and its credential.",
    label: "Remove",
    refusal: (agent) => (agent.connected ? "Only an agent that is not connected can be removed." : null),
  },
};

export const ALL_ORDERS = Object.keys(ORDERS) as AgentAction[];

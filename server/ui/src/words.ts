import type { AgentState, Job } from "./api/client";

type Palette = "blue" | "cyan" | "gray" | "green" | "orange" | "red";

/** For each state: its colour, and what it means, in a sentence that goes on after "The agent ...". */
export const AGENT_STATES: Record<AgentState, { palette: Palette; meaning: string }> = {
  starting: { meaning: "has connected and is getting ready.", palette: "blue" },
  idle: { meaning: "is connected and waits for jobs.", palette: "green" },
  running: { meaning: "is connected and runs jobs.", palette: "cyan" },
  "shutdown request": { meaning: "has been asked to stop.", palette: "gray" },
  terminating: { meaning: "is stopping; its last jobs still run.", palette: "gray" },
  offline: { meaning: "has said goodbye, or has never connected.", palette: "gray" },
  unknown: { meaning: "has not been heard of for too long.", palette: "red" },
  "maintenance request": { meaning: "is going into maintenance.", palette: "orange" },
  "maintenance pending": { meaning: "takes no new jobs, and waits for its last ones to end.", palette: "orange" },
  "maintenance mode": { meaning: "is in maintenance and takes no jobs.", palette: "orange" },
  "maintenance exit": { meaning: "is leaving maintenance.", palette: "orange" },
  "offline maintenance": { meaning: "is not connected, and will come back in maintenance.", palette: "orange" },
};

export const ALL_STATES = Object.keys(AGENT_STATES) as AgentState[];

export const JOB_STATES: Record<Job["state"], Palette> = {
  queued: "gray",
  offered: "blue",
  accepted: "blue",
  running: "cyan",
  finished: "green",
};

/** How a job is: its state, and when it has ended, how. */
export const jobWord = (job: Job): { palette: Palette; word: string } => {
  if (job.state !== "finished" || job.outcome === null) return { palette: JOB_STATES[job.state], word: job.state };
  return { palette: job.outcome === "finished" ? "green" : "red", word: job.outcome };
};

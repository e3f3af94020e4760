import { Heading, HStack, Stack, Text } from "@chakra-ui/react";

import type { JobState } from "../api/client";
import { useAgents, useJobs, useQueues } from "../api/queries";
import { Answer } from "../components/Answer";
import { Choice, FilterBar, useChosen } from "../components/Filters";
import { JobTable } from "../components/JobTable";
import { Paging } from "../components/Paging";
import { Empty } from "../components/small";
import { JOB_STATES } from "../words";

const LIMIT = 50;

export const JobsPage = () => {
  const [chosen, choose] = useChosen();
  const offset = Number(chosen("offset")) || 0;
  const query = useJobs({
    limit: LIMIT,
    offset,
    ...(chosen("agent") === "" ? {} : { agent: chosen("agent") }),
    ...(chosen("queue") === "" ? {} : { queue: chosen("queue") }),
    ...(chosen("state") === "" ? {} : { state: [chosen("state") as JobState] }),
  });
  const queues = useQueues();
  const agents = useAgents({ limit: 1000 });
  return (
    <Stack gap={3}>
      <HStack align="baseline">
        <Heading as="h2" size="md">
          Jobs
        </Heading>
        <Text color="fg.muted">{query.data?.total}</Text>
      </HStack>
      <FilterBar>
        <Choice
          all="All states"
          label="State"
          onChange={(state) => choose({ state })}
          options={Object.keys(JOB_STATES)}
          value={chosen("state")}
        />
        <Choice
          all="All queues"
          label="Queue"
          onChange={(queue) => choose({ queue })}
          options={(queues.data?.items ?? []).map((queue) => queue.name)}
          value={chosen("queue")}
        />
        <Choice
          all="All agents"
          label="Agent"
          onChange={(agent) => choose({ agent })}
          options={(agents.data?.items ?? []).map((agent) => agent.name)}
          value={chosen("agent")}
        />
      </FilterBar>
      <Answer query={query} rows={8}>
        {({ items, total }) =>
          items.length === 0 ? (
            <Empty title="There are no such jobs">
              A job appears here when Airflow queues a task for the edge executor. Finished ones are kept for some days.
            </Empty>
          ) : (
            <>
              <JobTable jobs={items} />
              <Paging limit={LIMIT} offset={offset} onMove={(next) => choose({ offset: String(next) })} total={total} />
            </>
          )
        }
      </Answer>
    </Stack>
  );
};

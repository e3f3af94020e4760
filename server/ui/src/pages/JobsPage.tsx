import { Stack } from "@chakra-ui/react";

import type { JobState } from "../api/client";
import { useAgents, useJobs } from "../api/queries";
import { Answer } from "../components/Answer";
import { Choice, FilterBar, filtersSet, QueueChoice, useChosen } from "../components/Filters";
import { JobTable } from "../components/JobTable";
import { PageHead } from "../components/lists";
import { Paging } from "../components/Paging";
import { Empty } from "../components/small";
import { JOB_STATES } from "../words";

const LIMIT = 50;
const FILTERS = ["agent", "queue", "state"] as const;

export const JobsPage = () => {
  const [chosen, choose] = useChosen();
  const offset = Number(chosen("offset")) || 0;
  const { state, ...others } = filtersSet(chosen, FILTERS);
  const query = useJobs({
    limit: LIMIT,
    offset,
    ...others,
    ...(state === undefined ? {} : { state: [state as JobState] }),
  });
  const agents = useAgents({ limit: 1000 });
  return (
    <Stack gap={3}>
      <PageHead title="Jobs" total={query.data?.total} />
      <FilterBar filters={FILTERS}>
        <Choice
          all="All states"
          label="State"
          onChange={(state) => choose({ state })}
          options={Object.keys(JOB_STATES)}
          value={chosen("state")}
        />
        <QueueChoice />
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
          total === 0 ? (
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

import { Alert, Stack, Table } from "@chakra-ui/react";

import { useQueues } from "../api/queries";
import { Ago } from "../components/Ago";
import { Answer } from "../components/Answer";
import { DataTable, middle, OfTeam, PageHead } from "../components/lists";
import { Empty, PageLink } from "../components/small";
import { pagePath } from "../paths";

const number = { fontVariantNumeric: "tabular-nums", textAlign: "end" } as const;

export const QueuesPage = () => (
  <Stack gap={3}>
    <PageHead title="Queues" />
    <Answer query={useQueues()}>
      {({ items }) => {
        const troubled = items.filter((queue) => queue.warning !== null);
        if (items.length === 0) {
          return (
            <Empty title="There are no queues">
              A queue appears here when an agent serves it, or when a task waits in it.
            </Empty>
          );
        }
        return (
          <>
            {troubled.map((queue) => (
              <Alert.Root key={`${queue.team} ${queue.name}`} status="error">
                <Alert.Indicator />
                <Alert.Content>
                  <Alert.Title>
                    Queue {queue.name}
                    {queue.team === null ? "" : ` of team ${queue.team}`}: {queue.warning}
                  </Alert.Title>
                  <Alert.Description>
                    {queue.agents === 0
                      ? "Let an agent serve it, or mend the queue in the Dag. "
                      : "Look at its agents. "}
                    <PageLink onColor to={pagePath("jobs", { queue: queue.name, state: "queued" })}>
                      Show what waits
                    </PageLink>
                  </Alert.Description>
                </Alert.Content>
              </Alert.Root>
            ))}
            <DataTable>
              <Table.Header>
                <Table.Row>
                  <Table.ColumnHeader>Queue</Table.ColumnHeader>
                  <Table.ColumnHeader {...number}>Queued</Table.ColumnHeader>
                  <Table.ColumnHeader {...number}>Running</Table.ColumnHeader>
                  <Table.ColumnHeader display={middle}>Oldest waits</Table.ColumnHeader>
                  <Table.ColumnHeader {...number}>Agents</Table.ColumnHeader>
                  <Table.ColumnHeader display={middle} {...number}>
                    Taking jobs
                  </Table.ColumnHeader>
                  <Table.ColumnHeader display={middle} {...number}>
                    Free slots
                  </Table.ColumnHeader>
                </Table.Row>
              </Table.Header>
              <Table.Body>
                {items.map((queue) => (
                  <Table.Row
                    bg={queue.warning === null ? undefined : "bg.error"}
                    data-queue={queue.name}
                    key={`${queue.team} ${queue.name}`}
                  >
                    <Table.Cell fontWeight="bold">
                      {queue.name}
                      <OfTeam team={queue.team} />
                    </Table.Cell>
                    <Table.Cell {...number}>
                      <PageLink
                        onColor={queue.warning !== null}
                        to={pagePath("jobs", { queue: queue.name, state: "queued" })}
                      >
                        {queue.queued}
                      </PageLink>
                    </Table.Cell>
                    <Table.Cell {...number}>
                      <PageLink
                        onColor={queue.warning !== null}
                        to={pagePath("jobs", { queue: queue.name, state: "running" })}
                      >
                        {queue.running}
                      </PageLink>
                    </Table.Cell>
                    <Table.Cell display={middle}>
                      <Ago at={queue.oldest_queued_at} never="" suffix="" />
                    </Table.Cell>
                    <Table.Cell {...number}>
                      <PageLink onColor={queue.warning !== null} to={pagePath("agents", { queue: queue.name })}>
                        {queue.agents}
                      </PageLink>
                    </Table.Cell>
                    <Table.Cell display={middle} {...number}>
                      {queue.agents_ready}
                    </Table.Cell>
                    <Table.Cell display={middle} {...number}>
                      {queue.free_slots}
                    </Table.Cell>
                  </Table.Row>
                ))}
              </Table.Body>
            </DataTable>
          </>
        );
      }}
    </Answer>
  </Stack>
);

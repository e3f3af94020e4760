import { Alert, Box, Flex, SimpleGrid, Stack, Text } from "@chakra-ui/react";
import type { ReactNode } from "react";

import type { AgentState, Overview } from "../api/client";
import { useOverview } from "../api/queries";
import { Ago } from "../components/Ago";
import { Answer } from "../components/Answer";
import { PageHead } from "../components/lists";
import { Empty, PageLink, Section, StateBadge } from "../components/small";
import { count } from "../format";
import { agentPath, pagePath } from "../paths";

type FigureProps = {
  readonly children?: ReactNode;
  readonly name: string;
  readonly to: string;
  readonly value: string;
};

const Figure = ({ children, name, to, value }: FigureProps) => (
  <Box borderRadius="lg" borderWidth={1} p={4}>
    <Text color="fg.muted" fontSize="sm">
      {name}
    </Text>
    <Text fontSize="2xl" fontVariantNumeric="tabular-nums" fontWeight="bold">
      <PageLink to={to}>{value}</PageLink>
    </Text>
    <Box color="fg.muted" fontSize="sm" minHeight="1.5em">
      {children}
    </Box>
  </Box>
);

const Figures = ({ overview }: { readonly overview: Overview }) => {
  const ended = Object.entries(overview.finished_last_hour_by_outcome).filter(([outcome]) => outcome !== "finished");
  return (
    <SimpleGrid columns={{ base: 1, sm: 2, xl: 4 }} gap={3}>
      <Figure
        name="Agents connected"
        to={pagePath("agents")}
        value={`${overview.agents_connected} of ${overview.agents}`}
      >
        {count(overview.problems_total, "agent")} with a problem
      </Figure>
      <Figure
        name="Slots used"
        to={pagePath("agents", { order_by: "-slots_used" })}
        value={`${overview.slots_used} of ${overview.slots_total}`}
      >
        of connected agents
      </Figure>
      <Figure name="Jobs queued" to={pagePath("jobs", { state: "queued" })} value={String(overview.jobs_queued)}>
        {overview.oldest_queued_at === null ? (
          "none waits"
        ) : (
          <>
            the oldest for <Ago at={overview.oldest_queued_at} suffix="" />
          </>
        )}
      </Figure>
      <Figure name="Jobs running" to={pagePath("jobs", { state: "running" })} value={String(overview.jobs_running)}>
        {overview.finished_last_hour} ended in the last hour
        {ended.length === 0 ? "" : `, of these ${ended.map(([outcome, number]) => `${number} ${outcome}`).join(", ")}`}
      </Figure>
    </SimpleGrid>
  );
};

const States = ({ overview }: { readonly overview: Overview }) => (
  <Section title="States">
    <Flex gap={4} wrap="wrap">
      {Object.entries(overview.agents_by_state)
        .filter(([, number]) => number > 0)
        .map(([state, number]) => (
          <Flex align="center" gap={2} key={state}>
            <StateBadge state={state as AgentState} />
            <PageLink to={pagePath("agents", { state })}>{count(number, "agent")}</PageLink>
          </Flex>
        ))}
    </Flex>
  </Section>
);

const Problems = ({ overview }: { readonly overview: Overview }) => (
  <Section title="What needs a look">
    {overview.problems.length === 0 ? (
      <Text color="fg.muted">Nothing: no agent reports a problem.</Text>
    ) : (
      <Stack as="ul" gap={2} listStyleType="none">
        {overview.problems.map((problem) => (
          <Flex align="baseline" as="li" gap={2} key={problem.name} wrap="wrap">
            <PageLink to={agentPath(problem.name)}>{problem.name}</PageLink>
            <StateBadge state={problem.state} />
            <Text wordBreak="break-word">{problem.problem}</Text>
          </Flex>
        ))}
        {overview.problems_total > overview.problems.length ? (
          <Text as="li" color="fg.muted">
            and {overview.problems_total - overview.problems.length} more
          </Text>
        ) : undefined}
      </Stack>
    )}
  </Section>
);

export const OverviewPage = () => (
  <Stack gap={3}>
    <PageHead title="Overview" />
    <Answer query={useOverview()}>
      {(overview) => (
        <>
          {overview.queues_without_agent.length === 0 ? undefined : (
            <Alert.Root status="error">
              <Alert.Indicator />
              <Alert.Content>
                <Alert.Title>
                  Jobs wait in {overview.queues_without_agent.length === 1 ? "a queue" : "queues"} that no agent serves:{" "}
                  {overview.queues_without_agent.join(", ")}
                </Alert.Title>
                <Alert.Description>
                  <PageLink onColor to={pagePath("queues")}>
                    Show the queues
                  </PageLink>
                </Alert.Description>
              </Alert.Content>
            </Alert.Root>
          )}
          {overview.agents === 0 ? (
            <Empty title="There are no agents yet">
              <PageLink to={pagePath("add")}>Add an agent</PageLink>
            </Empty>
          ) : undefined}
          <Figures overview={overview} />
          <States overview={overview} />
          <Problems overview={overview} />
        </>
      )}
    </Answer>
  </Stack>
);

import {
  Box,
  Code,
  DataList,
  Flex,
  Heading,
  HStack,
  NativeSelect,
  SimpleGrid,
  Stack,
  Table,
  Text,
} from "@chakra-ui/react";
import { type ReactNode, useMemo, useState } from "react";
import { useNavigate, useParams } from "react-router-dom";

import { type AgentDetail, ApiError, type MetricsPoint } from "../api/client";
import { useAgent, useAgentJobs, useEvents, useMetrics } from "../api/queries";
import { Ago } from "../components/Ago";
import { Answer, Fault } from "../components/Answer";
import { Chart } from "../components/Chart";
import { JobTable } from "../components/JobTable";
import { useNow } from "../components/now";
import { OrderMenu } from "../components/OrderMenu";
import { WhyNot } from "../components/rights";
import {
  Away,
  Empty,
  isDrained,
  Meter,
  PageLink,
  ProblemBadge,
  Section,
  StateBadge,
  Warnings,
} from "../components/small";
import { bytes, dateTime, duration } from "../format";
import { pagePath } from "../paths";
import { AGENT_STATES } from "../words";

const RANGES: [number, string][] = [
  [60, "last hour"],
  [360, "last 6 hours"],
  [1440, "last day"],
  [10_080, "last week"],
];

const Fact = ({ children, name }: { readonly children: ReactNode; readonly name: string }) => (
  <DataList.Item alignItems="start">
    <DataList.ItemLabel>{name}</DataList.ItemLabel>
    <DataList.ItemValue wordBreak="break-word">{children}</DataList.ItemValue>
  </DataList.Item>
);

const Facts = ({ agent }: { readonly agent: AgentDetail }) => {
  const { maintenance, metrics, overrides } = agent;
  const changes = [
    ...(overrides.slots === null || overrides.slots === undefined ? [] : [`${overrides.slots} slots`]),
    ...(overrides.queues_added ?? []).map((queue) => `with queue ${queue}`),
    ...(overrides.queues_removed ?? []).map((queue) => `without queue ${queue}`),
    ...(overrides.drain === true ? ["drained"] : []),
  ];
  return (
    <SimpleGrid columns={{ base: 1, md: 2, xl: 4 }} gap={3}>
      <Section title="State">
        <DataList.Root gap={2} orientation="horizontal" size="sm">
          <Fact name="Meaning">It {AGENT_STATES[agent.state].meaning}</Fact>
          <Fact name="Last heard of">
            <Ago at={agent.last_contact_at} />
          </Fact>
          <Fact name="Connected">
            {agent.connected ? (
              <span>
                for <Ago at={agent.connected_at} suffix="" />
                {agent.carrier === null ? "" : `, by ${agent.carrier === "websocket" ? "WebSocket" : "HTTP"}`}
              </span>
            ) : agent.away === null || agent.away === undefined ? (
              "no"
            ) : (
              <Away agent={agent} />
            )}
          </Fact>
          {agent.connected && (agent.results_waiting ?? 0) > 0 ? (
            <Fact name="Results waiting">{agent.results_waiting}</Fact>
          ) : undefined}
          {maintenance === null ? undefined : (
            <Fact name="Maintenance">
              {[
                maintenance.comment,
                maintenance.by === null ? null : `by ${maintenance.by}`,
                maintenance.since === null ? null : `since ${dateTime(maintenance.since)}`,
                maintenance.until === null ? null : `until ${dateTime(maintenance.until)}`,
              ]
                .filter((part) => part !== null)
                .join(", ")}
            </Fact>
          )}
        </DataList.Root>
      </Section>
      <Section title="Work">
        <DataList.Root gap={2} orientation="horizontal" size="sm">
          <Fact name="Queues">{agent.queues.join(", ") || "none"}</Fact>
          <Fact name="Slots used">
            {agent.slots_used} of {agent.slots_total}
          </Fact>
          <Fact name="Jobs">{agent.jobs}</Fact>
          {agent.team === null ? undefined : <Fact name="Team">{agent.team}</Fact>}
          {changes.length === 0 ? undefined : <Fact name="Changed here">{changes.join(", ")}</Fact>}
        </DataList.Root>
      </Section>
      <Section title="Host">
        <Stack gap={2}>
          <Meter label="CPU" percent={agent.connected ? metrics.cpu_percent : null} />
          <Meter label="Mem" percent={agent.connected ? metrics.memory_percent : null} />
          <Meter label="Disk" percent={agent.connected ? metrics.disk_percent : null} />
          <DataList.Root gap={2} orientation="horizontal" size="sm">
            <Fact name="Name">{agent.hostname ?? "not known"}</Fact>
            {metrics.cpu_count === null || metrics.cpu_count === undefined ? undefined : (
              <Fact name="Cores">{metrics.cpu_count}</Fact>
            )}
            {metrics.uptime_seconds === null || metrics.uptime_seconds === undefined ? undefined : (
              <Fact name="Up for">{duration(metrics.uptime_seconds)}</Fact>
            )}
            {Object.entries(metrics.custom ?? {}).map(([name, figure]) => (
              <Fact key={name} name={name}>
                {typeof figure === "object" ? JSON.stringify(figure) : String(figure)}
              </Fact>
            ))}
          </DataList.Root>
        </Stack>
      </Section>
      <Section title="Software">
        <DataList.Root gap={2} orientation="horizontal" size="sm">
          {Object.entries(agent.versions).map(([name, version]) => (
            <Fact key={name} name={name.replaceAll("_", " ")}>
              {version}
            </Fact>
          ))}
        </DataList.Root>
      </Section>
    </SimpleGrid>
  );
};

const series = (points: readonly MetricsPoint[], pick: (point: MetricsPoint) => number | null | undefined) =>
  points.flatMap((point) => {
    const value = pick(point);
    return value === null || value === undefined ? [] : [{ at: Date.parse(point.at), value }];
  });

const percent = (value: number) => `${value.toFixed(value < 10 ? 1 : 0)} %`;

const greatest = (points: readonly MetricsPoint[], pick: (point: MetricsPoint) => number | null | undefined) =>
  Math.max(0, ...points.map((point) => pick(point) ?? 0)) || null;

const Charts = ({ minutes, points }: { readonly minutes: number; readonly points: readonly MetricsPoint[] }) => {
  // To the minute: a chart that moved each second would be drawn each second.
  const to = Math.ceil(useNow() / 60_000) * 60_000;
  const shared = { from: to - minutes * 60_000, to };
  const figures = useMemo(
    () => ({
      cpu: series(points, (point) => point.cpu_percent),
      disk: series(points, (point) => point.disk_used_bytes),
      load: series(points, (point) => point.load_1_per_core),
      memory: series(points, (point) => point.memory_used_bytes),
      slots: series(points, (point) => point.slots_used),
    }),
    [points],
  );
  return (
    <SimpleGrid columns={{ base: 1, md: 2, xl: 3 }} gap={5}>
      <Chart {...shared} color="blue.solid" format={percent} max={100} name="CPU" points={figures.cpu} />
      <Chart
        {...shared}
        color="purple.solid"
        format={bytes}
        max={greatest(points, (point) => point.memory_total_bytes)}
        name="Memory"
        points={figures.memory}
      />
      <Chart
        {...shared}
        color="orange.solid"
        format={bytes}
        max={greatest(points, (point) => point.disk_total_bytes)}
        name="Disk"
        points={figures.disk}
      />
      <Chart
        {...shared}
        color="teal.solid"
        format={(value) => value.toFixed(2)}
        name="Load per core"
        points={figures.load}
      />
      <Chart
        {...shared}
        color="cyan.solid"
        format={(value) => value.toFixed(0)}
        name="Slots used"
        points={figures.slots}
      />
    </SimpleGrid>
  );
};

const History = ({ name }: { readonly name: string }) => {
  const [minutes, setMinutes] = useState(60);
  const query = useMetrics(name, minutes);
  return (
    <Section
      aside={
        <NativeSelect.Root size="sm" width="9rem">
          <NativeSelect.Field
            aria-label="Time shown"
            onChange={(event) => setMinutes(Number(event.target.value))}
            value={minutes}
          >
            {RANGES.map(([range, words]) => (
              <option key={range} value={range}>
                {words}
              </option>
            ))}
          </NativeSelect.Field>
          <NativeSelect.Indicator />
        </NativeSelect.Root>
      }
      title="History"
    >
      <Answer query={query}>
        {({ points }) =>
          points.length === 0 ? (
            <Text color="fg.muted">There are no figures of this time. One a minute is kept while it is connected.</Text>
          ) : (
            <Charts minutes={minutes} points={points} />
          )
        }
      </Answer>
    </Section>
  );
};

const Jobs = ({ name }: { readonly name: string }) => (
  <Section
    aside={<PageLink to={pagePath("jobs", { agent: name })}>All its jobs</PageLink>}
    title="Running and recent jobs"
  >
    <Answer query={useAgentJobs(name)}>
      {({ items }) =>
        items.length === 0 ? (
          <Text color="fg.muted">It has had no jobs yet.</Text>
        ) : (
          <JobTable jobs={items.slice(0, 20)} showAgent={false} />
        )
      }
    </Answer>
  </Section>
);

const Events = ({ name }: { readonly name: string }) => (
  <Section title="Events">
    <Answer query={useEvents(name)}>
      {({ items }) =>
        items.length === 0 ? (
          <Text color="fg.muted">Nothing has happened to it yet.</Text>
        ) : (
          <Box maxHeight="22rem" overflow="auto" tabIndex={0} role="group" aria-label="List of events">
            <Table.Root size="sm">
              <Table.Header>
                <Table.Row>
                  <Table.ColumnHeader>When</Table.ColumnHeader>
                  <Table.ColumnHeader>What</Table.ColumnHeader>
                  <Table.ColumnHeader>Details</Table.ColumnHeader>
                </Table.Row>
              </Table.Header>
              <Table.Body>
                {items.map((event) => (
                  <Table.Row key={event.id}>
                    <Table.Cell whiteSpace="nowrap">
                      <Ago at={event.at} />
                    </Table.Cell>
                    <Table.Cell>{event.kind}</Table.Cell>
                    <Table.Cell wordBreak="break-word">
                      {event.detail}
                      {event.by === null ? undefined : (
                        <Text as="span" color="fg.muted">
                          {event.detail === null ? "" : ", "}by {event.by}
                        </Text>
                      )}
                    </Table.Cell>
                  </Table.Row>
                ))}
              </Table.Body>
            </Table.Root>
          </Box>
        )
      }
    </Answer>
  </Section>
);

const Configuration = ({ agent }: { readonly agent: AgentDetail }) => (
  <Section title="Configuration">
    {agent.configuration === null ? (
      <Text color="fg.muted">The agent has not reported it. One of this version does when it connects.</Text>
    ) : (
      <Code bg="bg.subtle" display="block" maxHeight="22rem" overflow="auto" p={2} tabIndex={0} whiteSpace="pre">
        {JSON.stringify(agent.configuration, null, 2)}
      </Code>
    )}
  </Section>
);

export const AgentPage = () => {
  const { name = "" } = useParams();
  const query = useAgent(name);
  const navigate = useNavigate();
  if (query.error instanceof ApiError && query.error.status === 404) {
    return (
      <Empty title={`There is no agent ${name}`}>
        It may have been removed. <PageLink to={pagePath("agents")}>Show the agents</PageLink>
      </Empty>
    );
  }
  if (query.data === undefined && query.error !== null) {
    return <Fault error={query.error} onRetry={() => void query.refetch()} />;
  }
  return (
    <Answer query={query} rows={10}>
      {(agent) => (
        <Stack gap={3}>
          <Flex align="center" gap={3} justify="space-between" wrap="wrap">
            <HStack wrap="wrap">
              <Heading as="h2" size="md" wordBreak="break-word">
                {agent.name}
              </Heading>
              <StateBadge state={agent.state} />
              <ProblemBadge agent={agent} />
              {isDrained(agent) ? <Text fontSize="sm">drained</Text> : undefined}
            </HStack>
            <HStack wrap="wrap">
              <WhyNot />
              <OrderMenu agents={[agent]} label="Actions" onRemoved={() => navigate(pagePath("agents"))} />
            </HStack>
          </Flex>
          <Warnings agent={agent} />
          <Facts agent={agent} />
          <History name={agent.name} />
          <Jobs name={agent.name} />
          <SimpleGrid columns={{ base: 1, xl: 2 }} gap={3}>
            <Events name={agent.name} />
            <Configuration agent={agent} />
          </SimpleGrid>
        </Stack>
      )}
    </Answer>
  );
};

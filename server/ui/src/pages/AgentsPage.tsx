import { Button, HStack, Stack, Table, Text } from "@chakra-ui/react";
import { type ReactNode, useState } from "react";

import type { Agent, AgentState } from "../api/client";
import { type AgentFilter, useAgents } from "../api/queries";
import { Ago } from "../components/Ago";
import { Answer } from "../components/Answer";
import { Choice, FilterBar, filtersSet, QueueChoice, Search, useChosen, useFiltered } from "../components/Filters";
import { ArrowDown, ArrowUp } from "../components/icons";
import { DataTable, middle, PageHead, wide } from "../components/lists";
import { OrderMenu } from "../components/OrderMenu";
import { Paging } from "../components/Paging";
import { useRights, WhyNot } from "../components/rights";
import { Away, Empty, isDrained, Meter, PageLink, ProblemBadge, StateBadge, Warnings } from "../components/small";
import { bytes, count, dateTime } from "../format";
import { agentPath, pagePath } from "../paths";
import { ALL_STATES } from "../words";

const LIMIT = 50;
const FILTERS = ["name", "queue", "state"] as const;

/** Who types no pattern means a part of the name. */
const asGlob = (text: string) => (/[*?[]/.test(text) ? text : `*${text}*`);

const filterFrom = (chosen: (name: string) => string): AgentFilter => {
  const { name, state, ...others } = filtersSet(chosen, [...FILTERS, "order_by"]);
  return {
    limit: LIMIT,
    offset: Number(chosen("offset")) || 0,
    ...others,
    ...(name === undefined ? {} : { name: asGlob(name) }),
    ...(state === undefined ? {} : { state: [state as AgentState] }),
  };
};

type HeaderProps = { readonly children: ReactNode; readonly display?: typeof middle; readonly order: string };

/** Sorts by its column; again, the other way round. */
const SortHeader = ({ children, display, order }: HeaderProps) => {
  const [chosen, choose] = useChosen();
  const by = chosen("order_by") || "name";
  const direction = by === order ? "ascending" : by === `-${order}` ? "descending" : "none";
  return (
    <Table.ColumnHeader aria-sort={direction} display={display} whiteSpace="nowrap">
      <Button
        fontSize="sm"
        fontWeight="inherit"
        ms={-2}
        onClick={() => choose({ order_by: direction === "ascending" ? `-${order}` : order })}
        px={2}
        size="xs"
        variant="ghost"
      >
        {children}
        {direction === "none" ? undefined : direction === "ascending" ? (
          <ArrowUp boxSize={3} />
        ) : (
          <ArrowDown boxSize={3} />
        )}
      </Button>
    </Table.ColumnHeader>
  );
};

const share = (used: number | null | undefined, total: number | null | undefined) =>
  used === null || used === undefined || total === null || total === undefined
    ? {}
    : { title: `${bytes(used)} of ${bytes(total)}` };

/** How the host is; of one that is not connected, nobody knows. */
const Meters = ({ agent: { connected, metrics } }: { readonly agent: Agent }) =>
  connected ? (
    <Stack gap={0.5}>
      <Meter label="CPU" percent={metrics.cpu_percent} />
      <Meter
        label="Mem"
        percent={metrics.memory_percent}
        {...share(metrics.memory_used_bytes, metrics.memory_total_bytes)}
      />
      <Meter
        label="Disk"
        percent={metrics.disk_percent}
        {...share(metrics.disk_used_bytes, metrics.disk_total_bytes)}
      />
    </Stack>
  ) : null;

const Comment = ({ agent: { maintenance } }: { readonly agent: Agent }) => {
  if (maintenance === null) return null;
  const { by, comment, until } = maintenance;
  return (
    <Stack fontSize="sm" gap={0} maxWidth="16rem">
      {comment === null ? undefined : <Text wordBreak="break-word">{comment}</Text>}
      <Text color="fg.muted" fontSize="xs" wordBreak="break-word">
        {by === null ? "" : `by ${by}`}
        {until === null ? "" : `, until ${dateTime(until)}`}
      </Text>
    </Stack>
  );
};

const State = ({ agent }: { readonly agent: Agent }) => (
  <>
    <StateBadge state={agent.state} />
    <ProblemBadge agent={agent} />
    {isDrained(agent) ? <Text fontSize="xs">drained</Text> : undefined}
  </>
);

type RowProps = { readonly agent: Agent; readonly chosen: boolean; readonly onChoose: (chosen: boolean) => void };

const Row = ({ agent, chosen, onChoose }: RowProps) => {
  const { mayChange } = useRights();
  const about = [
    ...(agent.team === null ? [] : [`of team ${agent.team}`]),
    ...(agent.hostname === null || agent.hostname === agent.name ? [] : [`on ${agent.hostname}`]),
  ].join(", ");
  return (
    <Table.Row data-agent={agent.name}>
      {mayChange ? (
        <Table.Cell verticalAlign="top" width={8}>
          <input
            aria-label={`Choose ${agent.name}`}
            checked={chosen}
            onChange={(event) => onChoose(event.target.checked)}
            type="checkbox"
          />
        </Table.Cell>
      ) : undefined}
      <Table.Cell verticalAlign="top">
        <Stack gap={1} maxWidth={{ base: "none", md: "22rem" }}>
          <PageLink to={agentPath(agent.name)}>{agent.name}</PageLink>
          {about === "" ? undefined : (
            <Text color="fg.muted" fontSize="xs">
              {about}
            </Text>
          )}
          <HStack display={{ base: "flex", md: "none" }} fontSize="xs" gap={1} wrap="wrap">
            <State agent={agent} />
            <Text color="fg.muted">
              {agent.slots_used} of {agent.slots_total} slots, <Ago at={agent.last_contact_at} />
            </Text>
          </HStack>
          <Away agent={agent} />
          <Warnings agent={agent} />
        </Stack>
      </Table.Cell>
      <Table.Cell display={middle} verticalAlign="top">
        <Stack align="start" gap={1}>
          <State agent={agent} />
        </Stack>
      </Table.Cell>
      <Table.Cell display={middle} verticalAlign="top">
        <Text maxWidth="14rem" wordBreak="break-word">
          {agent.queues.join(", ") || "none"}
        </Text>
      </Table.Cell>
      <Table.Cell display={middle} fontVariantNumeric="tabular-nums" verticalAlign="top" whiteSpace="nowrap">
        {agent.slots_used} of {agent.slots_total}
      </Table.Cell>
      <Table.Cell display={middle} fontVariantNumeric="tabular-nums" verticalAlign="top">
        {agent.jobs}
      </Table.Cell>
      <Table.Cell display={middle} verticalAlign="top">
        <Ago at={agent.last_contact_at} />
      </Table.Cell>
      <Table.Cell display={wide} verticalAlign="top" whiteSpace="nowrap">
        <Stack gap={0}>
          <Text>{agent.versions.agent ?? "not known"}</Text>
          {agent.versions.task_sdk === undefined ? undefined : (
            <Text color="fg.muted" fontSize="xs">
              Task SDK {agent.versions.task_sdk}
            </Text>
          )}
        </Stack>
      </Table.Cell>
      <Table.Cell display={wide} verticalAlign="top">
        <Meters agent={agent} />
      </Table.Cell>
      <Table.Cell display={wide} verticalAlign="top">
        <Comment agent={agent} />
      </Table.Cell>
    </Table.Row>
  );
};

const NoAgents = ({ filtered, onReset }: { readonly filtered: boolean; readonly onReset: () => void }) =>
  filtered ? (
    <Empty title="No agent fits">
      <Button onClick={onReset} size="sm" variant="outline">
        Show all agents
      </Button>
    </Empty>
  ) : (
    <Empty title="There are no agents yet">
      <PageLink to={pagePath("add")}>Add an agent</PageLink>
    </Empty>
  );

export const AgentsPage = () => {
  const [chosen, choose] = useChosen();
  const [picked, setPicked] = useState<ReadonlySet<string>>(new Set());
  const { mayChange } = useRights();
  const { filtered, reset } = useFiltered(FILTERS);
  const query = useAgents(filterFrom(chosen));
  const agents = query.data?.items ?? [];
  const selection = agents.filter((agent) => picked.has(agent.name));
  const everyOne = agents.length > 0 && selection.length === agents.length;

  return (
    <Stack gap={3}>
      <PageHead title="Agents" total={query.data?.total}>
        <HStack wrap="wrap">
          <WhyNot />
          <OrderMenu
            agents={selection}
            label={selection.length === 0 ? "Choose agents to act on" : `Act on ${count(selection.length, "agent")}`}
          />
        </HStack>
      </PageHead>
      <FilterBar filters={FILTERS}>
        <Search
          label="Search names, such as press or press-*"
          onChange={(name) => choose({ name })}
          value={chosen("name")}
        />
        <Choice
          all="All states"
          label="State"
          onChange={(state) => choose({ state })}
          options={ALL_STATES}
          value={chosen("state")}
        />
        <QueueChoice />
      </FilterBar>
      <Answer query={query} rows={8}>
        {({ items, total }) =>
          total === 0 ? (
            <NoAgents filtered={filtered} onReset={reset} />
          ) : (
            <>
              <DataTable>
                <Table.Header>
                  <Table.Row>
                    {mayChange ? (
                      <Table.ColumnHeader width={8}>
                        <input
                          aria-label="Choose all agents shown"
                          checked={everyOne}
                          onChange={() => setPicked(new Set(everyOne ? [] : items.map((agent) => agent.name)))}
                          type="checkbox"
                        />
                      </Table.ColumnHeader>
                    ) : undefined}
                    <SortHeader order="name">Name</SortHeader>
                    <SortHeader display={middle} order="state">
                      State
                    </SortHeader>
                    <Table.ColumnHeader display={middle}>Queues</Table.ColumnHeader>
                    <Table.ColumnHeader display={middle}>Slots used</Table.ColumnHeader>
                    <Table.ColumnHeader display={middle}>Jobs</Table.ColumnHeader>
                    <Table.ColumnHeader display={middle}>Last heard of</Table.ColumnHeader>
                    <Table.ColumnHeader display={wide}>Version</Table.ColumnHeader>
                    <Table.ColumnHeader display={wide}>Host</Table.ColumnHeader>
                    <Table.ColumnHeader display={wide}>Comment</Table.ColumnHeader>
                  </Table.Row>
                </Table.Header>
                <Table.Body>
                  {items.map((agent) => (
                    <Row
                      agent={agent}
                      chosen={picked.has(agent.name)}
                      key={agent.name}
                      onChoose={(isChosen) =>
                        setPicked((before) => {
                          const next = new Set(before);
                          if (isChosen) next.add(agent.name);
                          else next.delete(agent.name);
                          return next;
                        })
                      }
                    />
                  ))}
                </Table.Body>
              </DataTable>
              <Paging
                limit={LIMIT}
                offset={Number(chosen("offset")) || 0}
                onMove={(offset) => {
                  setPicked(new Set());
                  choose({ offset: String(offset) });
                }}
                total={total}
              />
            </>
          )
        }
      </Answer>
    </Stack>
  );
};

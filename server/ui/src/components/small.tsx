import { Badge, Box, Code, Flex, Heading, HStack, IconButton, Link, Stack, Text } from "@chakra-ui/react";
import { type ReactNode, useRef, useState } from "react";
import { Link as RouterLink } from "react-router-dom";

import type { Agent, AgentState, Job } from "../api/client";
import { count, dateTime } from "../format";
import { AGENT_STATES, jobWord } from "../words";
import { CheckIcon, CopyIcon, WarningIcon } from "./icons";
import { useNotify } from "./notices";

export const StateBadge = ({ state }: { readonly state: AgentState }) => {
  const { meaning, palette } = AGENT_STATES[state];
  return (
    <Badge colorPalette={palette} title={`The agent ${meaning}`} whiteSpace="nowrap">
      <Box bg="colorPalette.solid" borderRadius="full" boxSize={2} />
      {state}
    </Badge>
  );
};

/** That it is connected is not the whole truth about an agent that takes no jobs. */
export const ProblemBadge = ({ agent }: { readonly agent: Pick<Agent, "problem"> }) =>
  agent.problem === null ? null : (
    <Badge colorPalette="red" title="It takes no jobs until this is mended." whiteSpace="nowrap">
      <WarningIcon boxSize={3} />
      problem
    </Badge>
  );

/** Whether by the server or on its host. */
export const isDrained = (agent: Pick<Agent, "drained" | "overrides">) =>
  agent.overrides.drain === true || (agent.drained ?? null) !== null;

export const JobBadge = ({ job }: { readonly job: Job }) => {
  const { palette, word } = jobWord(job);
  return (
    <Badge colorPalette={palette} whiteSpace="nowrap">
      {word}
    </Badge>
  );
};

/** Where Airflow's UI shows a job's task instance. */
const taskInstancePath = (job: Job): string | null => {
  if (job.dag_id === null || job.run_id === null || job.task_id === null) return null;
  const path = `/dags/${encodeURIComponent(job.dag_id)}/runs/${encodeURIComponent(job.run_id)}/tasks/${encodeURIComponent(job.task_id)}`;
  return `${path}${job.map_index >= 0 ? `/mapped/${job.map_index}` : ""}?try_number=${job.try_number}`;
};

export const JobLink = ({ job }: { readonly job: Job }) => {
  const path = taskInstancePath(job);
  if (path === null) return <Text as="span">{job.kind.replace("_", " ")}</Text>;
  const index = job.map_index >= 0 ? ` [${job.map_index}]` : "";
  return (
    <Stack gap={0} minWidth={0}>
      <PageLink to={path}>
        {job.dag_id}.{job.task_id}
        {index}
      </PageLink>
      <Text color="fg.muted" fontSize="xs" wordBreak="break-word">
        {job.run_id}, try {job.try_number}
      </Text>
    </Stack>
  );
};

type LinkProps = {
  readonly children: ReactNode;
  /** Whether it is on a coloured ground, where the colour of links is hard to read. */
  readonly onColor?: boolean;
  readonly to: string;
};

export const PageLink = ({ children, onColor = false, to }: LinkProps) => (
  <Link
    asChild
    color={onColor ? "inherit" : "fg.info"}
    textDecoration={onColor ? "underline" : undefined}
    wordBreak="break-word"
  >
    <RouterLink to={to}>{children}</RouterLink>
  </Link>
);

type MeterProps = { readonly label: string; readonly percent: number | null | undefined; readonly title?: string };

/** A small bar, with its figure in words. */
export const Meter = ({ label, percent, title }: MeterProps) => {
  if (percent === null || percent === undefined) {
    return (
      <HStack gap={1}>
        <Text color="fg.muted" fontSize="xs" width={8}>
          {label}
        </Text>
        <Text color="fg.muted" fontSize="xs">
          not known
        </Text>
      </HStack>
    );
  }
  const shown = Math.round(percent);
  const palette = shown >= 95 ? "red" : shown >= 80 ? "orange" : "blue";
  return (
    <HStack gap={1} title={title}>
      <Text color="fg.muted" fontSize="xs" width={8}>
        {label}
      </Text>
      <Box
        aria-label={label}
        aria-valuemax={100}
        aria-valuemin={0}
        aria-valuenow={Math.min(100, shown)}
        aria-valuetext={title ?? `${shown} percent`}
        bg="bg.emphasized"
        borderRadius="full"
        colorPalette={palette}
        height={1.5}
        overflow="hidden"
        role="meter"
        width={12}
      >
        <Box bg="colorPalette.solid" height="100%" style={{ width: `${Math.min(100, shown)}%` }} />
      </Box>
      <Text fontSize="xs" fontVariantNumeric="tabular-nums" textAlign="end" whiteSpace="nowrap" width={10}>
        {shown} %
      </Text>
    </HStack>
  );
};

export const Warnings = ({ agent }: { readonly agent: Pick<Agent, "drained" | "problem" | "warnings"> }) => {
  const lines = [
    ...(agent.problem === null ? [] : [{ palette: "red", text: agent.problem }]),
    ...(agent.drained === null || agent.drained === undefined ? [] : [{ palette: "orange", text: agent.drained }]),
    ...agent.warnings.map((text) => ({ palette: "orange", text })),
  ];
  return lines.map(({ palette, text }) => (
    <HStack align="start" color="colorPalette.fg" colorPalette={palette} fontSize="xs" gap={1} key={text}>
      <WarningIcon boxSize={3.5} mt="1px" />
      <Text wordBreak="break-word">{text}</Text>
    </HStack>
  ));
};

/** What an agent that has gone has left behind, and until when it may come back to it. */
export const Away = ({ agent: { away } }: { readonly agent: Pick<Agent, "away"> }) => {
  if (away === null || away === undefined) return null;
  const parts = [
    `disconnected since ${dateTime(away.since)}`,
    ...(away.lease_until === null ? [] : [`lease until ${dateTime(away.lease_until)}`]),
    `${count(away.running, "task")} running`,
    ...(away.results_waiting === null ? [] : [`${count(away.results_waiting, "result")} waiting`]),
  ];
  return (
    <Text color="fg.muted" data-away fontSize="xs" wordBreak="break-word">
      {parts.join(", ")}
    </Text>
  );
};

type SectionProps = { readonly aside?: ReactNode; readonly children: ReactNode; readonly title: string };

export const Section = ({ aside, children, title }: SectionProps) => (
  <Box as="section" aria-label={title} borderRadius="lg" borderWidth={1} minWidth={0} p={4}>
    <Flex align="center" gap={2} justify="space-between" mb={3} wrap="wrap">
      <Heading as="h3" size="sm">
        {title}
      </Heading>
      {aside}
    </Flex>
    {children}
  </Box>
);

export const Empty = ({ children, title }: { readonly children?: ReactNode; readonly title: string }) => (
  <Stack align="center" borderRadius="lg" borderStyle="dashed" borderWidth={1} gap={2} p={8} textAlign="center">
    <Text fontWeight="bold">{title}</Text>
    {children === undefined ? undefined : <Box color="fg.muted">{children}</Box>}
  </Stack>
);

/** A command, with a button that copies it. */
export const Command = ({ label, text }: { readonly label: string; readonly text: string }) => {
  const [copied, setCopied] = useState(false);
  const code = useRef<HTMLElement>(null);
  const notify = useNotify();
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Pages without TLS have no clipboard. What is selected may be copied all the same, if only by hand.
      if (code.current !== null) getSelection()?.selectAllChildren(code.current);
      if (!document.execCommand("copy")) {
        notify({
          ok: false,
          text: `The browser lets nobody copy ${label} but you: it is selected, copy it with the keyboard.`,
        });
        return;
      }
    }
    setCopied(true);
    setTimeout(() => setCopied(false), 2_000);
  };
  return (
    <Flex align="start" bg="bg.subtle" borderRadius="md" borderWidth={1} gap={2} p={2}>
      <Code
        bg="transparent"
        display="block"
        flex={1}
        fontSize="sm"
        minWidth={0}
        overflowX="auto"
        ref={code}
        // Long commands are scrolled; who has no mouse does it with the arrow keys.
        tabIndex={0}
        whiteSpace="pre"
      >
        {text}
      </Code>
      <IconButton
        aria-label={copied ? `${label}: copied` : `Copy ${label}`}
        onClick={() => void copy()}
        size="xs"
        variant="outline"
      >
        {copied ? <CheckIcon /> : <CopyIcon />}
      </IconButton>
    </Flex>
  );
};

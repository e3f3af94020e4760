import { Button, Stack, Table, Text } from "@chakra-ui/react";
import { useState } from "react";

import type { Job } from "../api/client";
import { bytes, duration } from "../format";
import { agentPath } from "../paths";
import { Ago } from "./Ago";
import { CancelDialog } from "./CancelDialog";
import { DataTable, middle, OfTeam, wide } from "./lists";
import { useRights } from "./rights";
import { JobBadge, JobLink, PageLink } from "./small";

/** When something last changed about a job, in words. */
const When = ({ job }: { readonly job: Job }) => {
  if (job.finished_at !== null) return <Ago at={job.finished_at} />;
  if (job.started_at !== null) {
    return (
      <>
        for <Ago at={job.started_at} suffix="" />
      </>
    );
  }
  return (
    <>
      waits <Ago at={job.queued_at} suffix="" />
    </>
  );
};

type RowProps = { readonly job: Job; readonly onCancel: () => void; readonly showAgent: boolean };

const Row = ({ job, onCancel, showAgent }: RowProps) => {
  const { mayChange } = useRights();
  const said = job.why ?? (job.outcome === "finished" ? null : job.detail) ?? job.cancel_reason;
  return (
    <Table.Row data-job={job.id}>
      <Table.Cell minWidth={{ base: "10rem", md: "auto" }} verticalAlign="top">
        <JobLink job={job} />
        <Text color="fg.muted" display={{ base: "block", md: "none" }} fontSize="xs" wordBreak="break-word">
          queue {job.queue}
          <OfTeam team={job.team} />
          {job.agent === null || !showAgent ? undefined : (
            <>
              , <PageLink to={agentPath(job.agent)}>{job.agent}</PageLink>
            </>
          )}
        </Text>
      </Table.Cell>
      <Table.Cell verticalAlign="top">
        <Stack align="start" gap={1} maxWidth="20rem">
          <JobBadge job={job} />
          {said === null ? undefined : (
            <Text color={job.why === null ? "fg.muted" : "fg.warning"} fontSize="xs" wordBreak="break-word">
              {said}
            </Text>
          )}
        </Stack>
      </Table.Cell>
      <Table.Cell verticalAlign="top" whiteSpace="nowrap">
        <When job={job} />
      </Table.Cell>
      <Table.Cell display={middle} verticalAlign="top">
        {job.queue}
        <OfTeam team={job.team} />
      </Table.Cell>
      {showAgent ? (
        <Table.Cell display={middle} verticalAlign="top">
          {job.agent === null ? undefined : <PageLink to={agentPath(job.agent)}>{job.agent}</PageLink>}
        </Table.Cell>
      ) : undefined}
      <Table.Cell display={wide} fontVariantNumeric="tabular-nums" textAlign="end" verticalAlign="top">
        {job.wall_seconds === null ? "" : duration(job.wall_seconds)}
      </Table.Cell>
      <Table.Cell display={wide} fontVariantNumeric="tabular-nums" textAlign="end" verticalAlign="top">
        {job.cpu_seconds === null ? "" : `${job.cpu_seconds.toFixed(2)} s`}
      </Table.Cell>
      <Table.Cell display={wide} fontVariantNumeric="tabular-nums" textAlign="end" verticalAlign="top">
        {job.peak_memory_bytes === null ? "" : bytes(job.peak_memory_bytes)}
      </Table.Cell>
      {mayChange ? (
        <Table.Cell textAlign="end" verticalAlign="top">
          {job.state === "finished" ? undefined : (
            <Button aria-label={`Cancel ${job.task_id ?? job.kind}`} onClick={onCancel} size="xs" variant="outline">
              Cancel
            </Button>
          )}
        </Table.Cell>
      ) : undefined}
    </Table.Row>
  );
};

type Props = { readonly jobs: readonly Job[]; readonly showAgent?: boolean };

export const JobTable = ({ jobs, showAgent = true }: Props) => {
  const [cancelled, setCancelled] = useState<Job | null>(null);
  const { mayChange } = useRights();
  return (
    <>
      <DataTable>
        <Table.Header>
          <Table.Row>
            <Table.ColumnHeader>Task instance</Table.ColumnHeader>
            <Table.ColumnHeader>State</Table.ColumnHeader>
            <Table.ColumnHeader>When</Table.ColumnHeader>
            <Table.ColumnHeader display={middle}>Queue</Table.ColumnHeader>
            {showAgent ? <Table.ColumnHeader display={middle}>Agent</Table.ColumnHeader> : undefined}
            <Table.ColumnHeader display={wide} textAlign="end">
              Took
            </Table.ColumnHeader>
            <Table.ColumnHeader display={wide} textAlign="end">
              CPU time
            </Table.ColumnHeader>
            <Table.ColumnHeader display={wide} textAlign="end">
              Peak memory
            </Table.ColumnHeader>
            {mayChange ? <Table.ColumnHeader textAlign="end">Action</Table.ColumnHeader> : undefined}
          </Table.Row>
        </Table.Header>
        <Table.Body>
          {jobs.map((job) => (
            <Row job={job} key={job.id} onCancel={() => setCancelled(job)} showAgent={showAgent} />
          ))}
        </Table.Body>
      </DataTable>
      {cancelled === null ? undefined : <CancelDialog job={cancelled} onClose={() => setCancelled(null)} />}
    </>
  );
};

import { Alert, Box, Button, Field, Input, SimpleGrid, Spinner, Stack, Table, Text } from "@chakra-ui/react";
import { useEffect, useRef, useState } from "react";

import type { JoinToken, JoinTokenOrder, NewJoinToken } from "../api/client";
import { useAwaited, useJoinTokens, useMakeJoinToken, useQueues, useRevokeJoinToken, useTeams } from "../api/queries";
import { Ago } from "../components/Ago";
import { Answer, Fault } from "../components/Answer";
import { Select } from "../components/forms";
import { DataTable, PageHead } from "../components/lists";
import { useNotify } from "../components/notices";
import { useRights, WhyNot } from "../components/rights";
import { Command, PageLink, Section } from "../components/small";
import { dateTime, listed } from "../format";
import { agentPath } from "../paths";

type Platform = "deb" | "manual" | "rpm";

const PLATFORMS: [Platform, string][] = [
  ["deb", "Debian, Ubuntu and the like"],
  ["rpm", "Fedora, RHEL and the like"],
  ["manual", "anything else, with pip"],
];

const VALIDITIES: [number, string][] = [
  [3_600, "1 hour"],
  [86_400, "1 day"],
  [604_800, "1 week"],
];

const MOST_USES = 10_000;

const NAME = /^[A-Za-z0-9*?][A-Za-z0-9._*?-]{0,62}$/;

type FormProps = { readonly onMade: (order: JoinTokenOrder, made: NewJoinToken, platform: Platform) => void };

const Form = ({ onMade }: FormProps) => {
  const [name, setName] = useState("");
  const [queues, setQueues] = useState("default");
  const [platform, setPlatform] = useState<Platform>("deb");
  const [seconds, setSeconds] = useState(86_400);
  const [uses, setUses] = useState("1");
  const [tried, setTried] = useState(false);
  const { mayChange, whyNot } = useRights();
  const known = useQueues();
  const teams = useTeams();
  const [team, setTeam] = useState("");
  const make = useMakeJoinToken();
  const asked = listed(queues);
  const bad = {
    name: !NAME.test(name.trim()),
    queues: asked.length === 0,
    uses: !(Number.isInteger(Number(uses)) && Number(uses) >= 1 && Number(uses) <= MOST_USES),
  };
  const submit = () => {
    setTried(true);
    // The Enter key asks too, as often as it is pressed.
    if (bad.name || bad.queues || bad.uses || !mayChange || make.isPending) return;
    const order: JoinTokenOrder = {
      name_pattern: name.trim(),
      queues: asked,
      team: team || null,
      uses: Number(uses),
      valid_seconds: seconds,
    };
    make.mutate(order, { onSuccess: (made) => onMade(order, made, platform) });
  };
  return (
    <form
      noValidate
      onSubmit={(event) => {
        event.preventDefault();
        submit();
      }}
    >
      <Stack gap={4}>
        <SimpleGrid columns={{ base: 1, md: 2 }} gap={4}>
          <Field.Root invalid={tried && bad.name} required>
            <Field.Label>Name</Field.Label>
            <Input onChange={(event) => setName(event.target.value)} placeholder="press-07" value={name} />
            <Field.HelperText>For several agents with one token: a pattern, such as press-*.</Field.HelperText>
            <Field.ErrorText>
              Up to 63 letters, digits, dots, underscores and hyphens; * and ? in a pattern.
            </Field.ErrorText>
          </Field.Root>
          <Field.Root invalid={tried && bad.queues} required>
            <Field.Label>Queues</Field.Label>
            <Input
              list="edge-agents-queues"
              onChange={(event) => setQueues(event.target.value)}
              placeholder="plant-3"
              value={queues}
            />
            <Field.HelperText>
              What it may serve. Several are separated by commas; * stands for every queue.
            </Field.HelperText>
            <Field.ErrorText>Name at least one queue.</Field.ErrorText>
            <datalist id="edge-agents-queues">
              {[...new Set((known.data?.items ?? []).map((queue) => queue.name))].map((queue) => (
                <option key={queue} value={queue} />
              ))}
            </datalist>
          </Field.Root>
          {teams.data?.enabled === true ? (
            <Select
              label="Team"
              onChange={setTeam}
              options={[["", "none: jobs of no team"], ...teams.data.items.map((one): [string, string] => [one, one])]}
              value={team}
            />
          ) : undefined}
          <Select
            label="Platform"
            onChange={(value) => setPlatform(value as Platform)}
            options={PLATFORMS}
            value={platform}
          />
          <Select
            label="The token is good for"
            onChange={(value) => setSeconds(Number(value))}
            options={VALIDITIES}
            value={seconds}
          />
          <Field.Root invalid={tried && bad.uses}>
            <Field.Label>How many agents may use it</Field.Label>
            <Input inputMode="numeric" onChange={(event) => setUses(event.target.value)} value={uses} />
            <Field.ErrorText>A whole number from 1 to {MOST_USES}.</Field.ErrorText>
          </Field.Root>
        </SimpleGrid>
        {make.error === null ? undefined : <Fault error={make.error} />}
        <Box>
          <Button colorPalette="brand" disabled={!mayChange} loading={make.isPending} title={whyNot} type="submit">
            Make a join token
          </Button>
          <WhyNot />
        </Box>
      </Stack>
    </form>
  );
};

/** Waits for agents that fit, and says when one is there. */
const Arrival = ({ pattern, since }: { readonly pattern: string; readonly since: number }) => {
  const { data } = useAwaited(pattern);
  const here = (data?.items ?? []).filter(
    (agent) => agent.connected && agent.connected_at !== null && Date.parse(agent.connected_at) >= since,
  );
  return (
    <div aria-live="polite">
      {here.length === 0 ? (
        <Alert.Root status="info">
          <Spinner size="sm" />
          <Alert.Content>
            <Alert.Title>Waiting for {pattern} to connect</Alert.Title>
          </Alert.Content>
        </Alert.Root>
      ) : (
        <Stack>
          {here.map((agent) => (
            <Alert.Root key={agent.name} status="success">
              <Alert.Indicator />
              <Alert.Content>
                <Alert.Title>
                  <PageLink onColor to={agentPath(agent.name)}>
                    {agent.name}
                  </PageLink>{" "}
                  is here
                </Alert.Title>
                <Alert.Description>
                  {agent.problem === null
                    ? `It is ${agent.state} and serves ${agent.queues.join(", ") || "no queues"}${agent.team === null ? "" : ` of team ${agent.team}`}.`
                    : agent.problem}
                </Alert.Description>
              </Alert.Content>
            </Alert.Root>
          ))}
        </Stack>
      )}
    </div>
  );
};

type MadeProps = {
  readonly made: NewJoinToken;
  readonly onAgain: () => void;
  readonly order: JoinTokenOrder;
  readonly platform: Platform;
  readonly since: number;
};

const Made = ({ made, onAgain, order, platform, since }: MadeProps) => (
  <Stack gap={4}>
    <Stack gap={1}>
      <Text fontWeight="bold">1. Copy the token</Text>
      <Command label="the token" text={made.token} />
      <Text color="fg.muted" fontSize="sm">
        It is shown this once, and good until {dateTime(made.expires_at)}.
      </Text>
    </Stack>
    <Stack gap={1}>
      <Text fontWeight="bold">2. Run on the new machine</Text>
      {(made.commands[platform] ?? []).map((command, step) => (
        <Command key={command} label={`command ${step + 1}`} text={command} />
      ))}
      <Text color="fg.muted" fontSize="sm">
        Enrolling asks for the token: paste it there.
      </Text>
    </Stack>
    <Arrival pattern={order.name_pattern} since={since} />
    <Box>
      <Button onClick={onAgain} size="sm" variant="outline">
        Add another agent
      </Button>
    </Box>
  </Stack>
);

const Tokens = ({ tokens }: { readonly tokens: readonly JoinToken[] }) => {
  const notify = useNotify();
  const revoke = useRevokeJoinToken();
  const withTeams = useTeams().data?.enabled === true;
  return (
    <DataTable>
      <Table.Header>
        <Table.Row>
          <Table.ColumnHeader>For</Table.ColumnHeader>
          <Table.ColumnHeader>Queues</Table.ColumnHeader>
          {withTeams ? <Table.ColumnHeader>Team</Table.ColumnHeader> : undefined}
          <Table.ColumnHeader>Uses left</Table.ColumnHeader>
          <Table.ColumnHeader>Until</Table.ColumnHeader>
          <Table.ColumnHeader>Made</Table.ColumnHeader>
          <Table.ColumnHeader textAlign="end">Action</Table.ColumnHeader>
        </Table.Row>
      </Table.Header>
      <Table.Body>
        {tokens.map((token) => (
          <Table.Row data-token={token.name_pattern} key={token.id}>
            <Table.Cell>{token.name_pattern}</Table.Cell>
            <Table.Cell>{token.queues.join(", ")}</Table.Cell>
            {withTeams ? <Table.Cell>{token.team ?? "none"}</Table.Cell> : undefined}
            <Table.Cell>{token.uses_left}</Table.Cell>
            <Table.Cell whiteSpace="nowrap">{dateTime(token.expires_at)}</Table.Cell>
            <Table.Cell whiteSpace="nowrap">
              <Ago at={token.created_at} />
              {token.created_by === null ? "" : ` by ${token.created_by}`}
            </Table.Cell>
            <Table.Cell textAlign="end">
              <Button
                aria-label={`Revoke the token for ${token.name_pattern}`}
                onClick={() =>
                  revoke.mutate(token.id, {
                    onError: (error) => notify({ ok: false, text: error.message }),
                    onSuccess: () => notify({ ok: true, text: `The token for ${token.name_pattern} is revoked.` }),
                  })
                }
                size="xs"
                variant="outline"
              >
                Revoke
              </Button>
            </Table.Cell>
          </Table.Row>
        ))}
      </Table.Body>
    </DataTable>
  );
};

const OpenTokens = () => (
  <Answer query={useJoinTokens()}>
    {({ items }) => {
      const open = items.filter((token) => token.usable);
      return open.length === 0 ? <Text color="fg.muted">None.</Text> : <Tokens tokens={open} />;
    }}
  </Answer>
);

type Done = { readonly made: NewJoinToken; readonly order: JoinTokenOrder; readonly platform: Platform };

/** When the token was made, by the server's clock. Those of several servers differ a little. */
const madeAt = ({ made, order }: Done) => Date.parse(made.expires_at) - (order.valid_seconds ?? 0) * 1_000 - 5_000;

export const AddPage = () => {
  const [done, setDone] = useState<Done | null>(null);
  const { mayChange } = useRights();
  const box = useRef<HTMLDivElement>(null);
  const shown = useRef(done);
  useEffect(() => {
    // What had the focus has gone: go on with what has come instead.
    if (shown.current !== done) box.current?.focus();
    shown.current = done;
  }, [done]);
  return (
    <Stack gap={3}>
      <PageHead title="Add an agent" />
      <Box outline="none" ref={box} tabIndex={-1}>
        <Section title={done === null ? "Which one" : `Let ${done.order.name_pattern} join`}>
          {done === null ? (
            <Form onMade={(order, made, platform) => setDone({ made, order, platform })} />
          ) : (
            <Made {...done} onAgain={() => setDone(null)} since={madeAt(done)} />
          )}
        </Section>
      </Box>
      {mayChange ? (
        <Section title="Join tokens that are open">
          <OpenTokens />
        </Section>
      ) : undefined}
    </Stack>
  );
};

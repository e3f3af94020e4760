import {
  Alert,
  Box,
  Button,
  Field,
  Heading,
  Input,
  NativeSelect,
  SimpleGrid,
  Spinner,
  Stack,
  Table,
  Text,
} from "@chakra-ui/react";
import { useState } from "react";

import type { JoinToken, JoinTokenOrder, NewJoinToken } from "../api/client";
import { useAwaited, useJoinTokens, useMakeJoinToken, useQueues, useRevokeJoinToken, useTeams } from "../api/queries";
import { Ago } from "../components/Ago";
import { Answer, Fault } from "../components/Answer";
import { useNotify } from "../components/notices";
import { useRights } from "../components/rights";
import { agentPath, Command, PageLink, Section } from "../components/small";
import { dateTime } from "../format";

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

const NAME = /^[A-Za-z0-9*?][A-Za-z0-9._*?-]{0,62}$/;

type Choice<Value extends number | string> = {
  readonly label: string;
  readonly onChange: (value: string) => void;
  readonly options: readonly (readonly [Value, string])[];
  readonly value: Value;
};

function Select<Value extends number | string>({ label, onChange, options, value }: Choice<Value>) {
  return (
    <Field.Root>
      <Field.Label>{label}</Field.Label>
      <NativeSelect.Root>
        <NativeSelect.Field onChange={(event) => onChange(event.target.value)} value={value}>
          {options.map(([key, words]) => (
            <option key={key} value={key}>
              {words}
            </option>
          ))}
        </NativeSelect.Field>
        <NativeSelect.Indicator />
      </NativeSelect.Root>
    </Field.Root>
  );
}

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
  const asked = queues
    .split(",")
    .map((queue) => queue.trim())
    .filter((queue) => queue !== "");
  const badName = tried && !NAME.test(name);
  const badQueues = tried && asked.length === 0;
  const badUses = tried && !(Number.isInteger(Number(uses)) && Number(uses) >= 1);
  const submit = () => {
    setTried(true);
    if (!NAME.test(name) || asked.length === 0 || !(Number.isInteger(Number(uses)) && Number(uses) >= 1)) return;
    const order: JoinTokenOrder = {
      name_pattern: name,
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
          <Field.Root invalid={badName} required>
            <Field.Label>Name</Field.Label>
            <Input onChange={(event) => setName(event.target.value)} placeholder="press-07" value={name} />
            <Field.HelperText>For several agents with one token: a pattern, such as press-*.</Field.HelperText>
            <Field.ErrorText>
              Up to 63 letters, digits, dots, underscores and hyphens; * and ? in a pattern.
            </Field.ErrorText>
          </Field.Root>
          <Field.Root invalid={badQueues} required>
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
          <Field.Root invalid={badUses}>
            <Field.Label>How many agents may use it</Field.Label>
            <Input inputMode="numeric" onChange={(event) => setUses(event.target.value)} value={uses} />
            <Field.ErrorText>A whole number, 1 or more.</Field.ErrorText>
          </Field.Root>
        </SimpleGrid>
        {make.error === null ? undefined : <Fault error={make.error} />}
        <Box>
          <Button colorPalette="brand" disabled={!mayChange} loading={make.isPending} title={whyNot} type="submit">
            Make a join token
          </Button>
          {mayChange ? undefined : (
            <Text color="fg.muted" fontSize="sm" mt={1}>
              {whyNot}
            </Text>
          )}
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
                    ? `It is ${agent.state} and serves ${agent.queues.join(", ")}.`
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
  const { mayChange } = useRights();
  const notify = useNotify();
  const revoke = useRevokeJoinToken();
  return (
    <Box overflowX="auto">
      <Table.Root size="sm">
        <Table.Header>
          <Table.Row>
            <Table.ColumnHeader>For</Table.ColumnHeader>
            <Table.ColumnHeader>Queues</Table.ColumnHeader>
            <Table.ColumnHeader>Uses left</Table.ColumnHeader>
            <Table.ColumnHeader>Until</Table.ColumnHeader>
            <Table.ColumnHeader>Made</Table.ColumnHeader>
            {mayChange ? <Table.ColumnHeader textAlign="end">Action</Table.ColumnHeader> : undefined}
          </Table.Row>
        </Table.Header>
        <Table.Body>
          {tokens.map((token) => (
            <Table.Row data-token={token.name_pattern} key={token.id}>
              <Table.Cell>{token.name_pattern}</Table.Cell>
              <Table.Cell>{token.queues.join(", ")}</Table.Cell>
              <Table.Cell>{token.uses_left}</Table.Cell>
              <Table.Cell whiteSpace="nowrap">{dateTime(token.expires_at)}</Table.Cell>
              <Table.Cell whiteSpace="nowrap">
                <Ago at={token.created_at} />
                {token.created_by === null ? "" : ` by ${token.created_by}`}
              </Table.Cell>
              {mayChange ? (
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
              ) : undefined}
            </Table.Row>
          ))}
        </Table.Body>
      </Table.Root>
    </Box>
  );
};

type Done = { readonly made: NewJoinToken; readonly order: JoinTokenOrder; readonly platform: Platform };

export const AddPage = () => {
  const [done, setDone] = useState<(Done & { readonly since: number }) | null>(null);
  const tokens = useJoinTokens();
  return (
    <Stack gap={3}>
      <Heading as="h2" size="md">
        Add an agent
      </Heading>
      <Section title={done === null ? "Which one" : `Let ${done.order.name_pattern} join`}>
        {done === null ? (
          <Form
            onMade={(order, made, platform) =>
              // Clocks differ a little; who connected a minute ago is none of those waited for, or all the same to see.
              setDone({ made, order, platform, since: Date.now() - 5_000 })
            }
          />
        ) : (
          <Made {...done} onAgain={() => setDone(null)} />
        )}
      </Section>
      <Section title="Join tokens that are open">
        <Answer query={tokens}>
          {({ items }) => {
            const open = items.filter((token) => token.usable);
            return open.length === 0 ? <Text color="fg.muted">None.</Text> : <Tokens tokens={open} />;
          }}
        </Answer>
      </Section>
    </Stack>
  );
};

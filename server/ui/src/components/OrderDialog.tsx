import { Alert, Button, Field, HStack, Input, List, Stack, Text, Textarea } from "@chakra-ui/react";
import { type RefObject, useEffect, useState } from "react";

import type { Agent, AgentAction, BulkDone, BulkOrder } from "../api/client";
import { useOrder, usePreview } from "../api/queries";
import { count, listed } from "../format";
import { ORDERS } from "../orders";
import { Fault } from "./Answer";
import { Select } from "./forms";
import { Modal } from "./Modal";
import { useNotify } from "./notices";

const DURATIONS: [string, string][] = [
  ["", "until somebody ends it"],
  ["1800", "30 minutes"],
  ["3600", "1 hour"],
  ["7200", "2 hours"],
  ["14400", "4 hours"],
  ["28800", "8 hours"],
  ["86400", "1 day"],
  ["604800", "1 week"],
];

const RUNNING_JOBS: [Fields["runningJobs"], string][] = [
  ["finish", "may end by themselves"],
  ["cancel", "are cancelled first"],
];

type Fields = {
  readonly add: string;
  readonly comment: string;
  readonly duration: string;
  readonly remove: string;
  readonly reset: boolean;
  readonly runningJobs: "cancel" | "finish";
  readonly slots: string;
};

const orderFor = (action: AgentAction, names: string[], fields: Fields): BulkOrder => ({
  action,
  add: action === "queues" ? listed(fields.add) : [],
  comment: action === "maintenance_on" && fields.comment.trim() !== "" ? fields.comment.trim() : null,
  dry_run: false,
  for_seconds: action === "maintenance_on" && fields.duration !== "" ? Number(fields.duration) : null,
  names,
  remove: action === "queues" ? listed(fields.remove) : [],
  reset: action === "queues" && fields.reset,
  running_jobs: fields.runningJobs,
  slots: action === "concurrency" && fields.slots !== "" ? Number(fields.slots) : null,
});

/** What is missing in the fields; null: nothing. */
const gap = (action: AgentAction, fields: Fields): string | null => {
  if (action === "queues" && !fields.reset && listed(fields.add).length + listed(fields.remove).length === 0) {
    return "Name a queue to add or to remove.";
  }
  const slots = Number(fields.slots);
  if (action === "concurrency" && fields.slots !== "" && !(Number.isInteger(slots) && slots >= 1 && slots <= 1000)) {
    return "Slots are a whole number from 1 to 1000, or nothing.";
  }
  return null;
};

const useSettled = <Value,>(value: Value, milliseconds: number): Value => {
  const [settled, setSettled] = useState(value);
  useEffect(() => {
    const timer = setTimeout(() => setSettled(value), milliseconds);
    return () => clearTimeout(timer);
  }, [value, milliseconds]);
  return settled;
};

type InputsProps = {
  readonly action: AgentAction;
  readonly agents: readonly Agent[];
  readonly fields: Fields;
  readonly onChange: (change: Partial<Fields>) => void;
};

const Inputs = ({ action, agents, fields, onChange }: InputsProps) => {
  if (action === "maintenance_on") {
    return (
      <>
        <Field.Root>
          <Field.Label>Comment</Field.Label>
          <Textarea
            maxLength={2000}
            onChange={(event) => onChange({ comment: event.target.value })}
            placeholder="Why, for those who see it"
            value={fields.comment}
          />
        </Field.Root>
        <Select
          label="How long"
          onChange={(duration) => onChange({ duration })}
          options={DURATIONS}
          value={fields.duration}
        />
      </>
    );
  }
  if (action === "concurrency") {
    return (
      <Field.Root>
        <Field.Label>Slots</Field.Label>
        <Input
          inputMode="numeric"
          max={1000}
          min={1}
          onChange={(event) => onChange({ slots: event.target.value })}
          placeholder="as the agent is configured"
          type="number"
          value={fields.slots}
        />
        <Field.HelperText>Leave it empty to go back to what the agent's own configuration says.</Field.HelperText>
      </Field.Root>
    );
  }
  if (action === "queues") {
    const now = [...new Set(agents.flatMap((agent) => agent.queues))].sort();
    return (
      <>
        <Text fontSize="sm">Now: {now.length === 0 ? "none" : now.join(", ")}</Text>
        <Field.Root>
          <Field.Label>Add</Field.Label>
          <Input onChange={(event) => onChange({ add: event.target.value })} value={fields.add} />
          <Field.HelperText>Several are separated by commas.</Field.HelperText>
        </Field.Root>
        <Field.Root>
          <Field.Label>Remove</Field.Label>
          <Input onChange={(event) => onChange({ remove: event.target.value })} value={fields.remove} />
        </Field.Root>
        <HStack as="label" fontSize="sm">
          <input
            checked={fields.reset}
            onChange={(event) => onChange({ reset: event.target.checked })}
            type="checkbox"
          />
          First forget what was added and removed here before
        </HStack>
      </>
    );
  }
  if (action === "revoke") {
    return (
      <Select
        label="Its running jobs"
        onChange={(value) => onChange({ runningJobs: value === "cancel" ? "cancel" : "finish" })}
        options={RUNNING_JOBS}
        value={fields.runningJobs}
      />
    );
  }
  return null;
};

const Results = ({ done }: { readonly done: BulkDone }) => (
  <List.Root fontSize="sm" maxHeight="12rem" overflowY="auto" ps={4} tabIndex={0} aria-label="What happens to each">
    {done.results.map((result) => (
      <List.Item color={result.ok ? "fg" : "fg.error"} key={result.name}>
        {result.name}: {result.message}
      </List.Item>
    ))}
  </List.Root>
);

type Props = {
  readonly action: AgentAction;
  readonly agents: readonly Agent[];
  readonly onClose: () => void;
  readonly onDone?: (done: BulkDone) => void;
  readonly returnTo: RefObject<HTMLElement | null>;
};

/** Asks for what an order needs, shows what it would do, gives it, and says what became of it. */
export const OrderDialog = ({ action, agents, onClose, onDone, returnTo }: Props) => {
  const { danger = false, explanation, label } = ORDERS[action];
  const names = agents.map((agent) => agent.name);
  const [fields, setFields] = useState<Fields>({
    add: "",
    comment: "",
    duration: "",
    remove: "",
    reset: false,
    runningJobs: "finish",
    slots: "",
  });
  const [tried, setTried] = useState(false);
  const notify = useNotify();
  const order = useOrder();
  const missing = gap(action, fields);
  const settled = useSettled(fields, 400);
  const preview = usePreview({ ...orderFor(action, names, settled), comment: null }, gap(action, settled) === null);
  const failed = order.data !== undefined && order.data.failed > 0;

  const submit = () => {
    setTried(true);
    // The Enter key gives orders too, as often as it is pressed.
    if (missing !== null || failed || order.isPending) return;
    order.mutate(orderFor(action, names, fields), {
      onSuccess: (done) => {
        onDone?.(done);
        if (done.failed > 0) return;
        const text = done.results.length === 1 ? done.results.map((it) => `${it.name}: ${it.message}`).join() : "";
        notify({ ok: true, text: text || `${label}: done for ${count(done.results.length, "agent")}.` });
        onClose();
      },
    });
  };

  return (
    <Modal
      buttons={
        <>
          <Button onClick={onClose} variant="outline">
            {failed ? "Close" : "Not now"}
          </Button>
          {failed ? undefined : (
            <Button
              colorPalette={danger ? "red" : "brand"}
              form="edge-agents-order"
              loading={order.isPending}
              type="submit"
            >
              {label}
            </Button>
          )}
        </>
      }
      danger={danger}
      onClose={onClose}
      returnTo={returnTo}
      title={`${label}: ${names.length === 1 ? names[0] : count(names.length, "agent")}`}
    >
      <form
        id="edge-agents-order"
        onSubmit={(event) => {
          event.preventDefault();
          submit();
        }}
      >
        <Stack gap={4}>
          <Text>{explanation}</Text>
          <Inputs
            action={action}
            agents={agents}
            fields={fields}
            onChange={(change) => setFields((before) => ({ ...before, ...change }))}
          />
          {tried && missing !== null ? (
            <Text color="fg.error" role="alert">
              {missing}
            </Text>
          ) : undefined}
          {order.data === undefined && preview.data !== undefined ? (
            <Stack gap={1}>
              <Text fontSize="sm" fontWeight="bold">
                What this will do
              </Text>
              <Results done={preview.data} />
            </Stack>
          ) : undefined}
          {order.error === null ? undefined : <Fault error={order.error} />}
          {failed && order.data !== undefined ? (
            <Alert.Root role="alert" status="error">
              <Alert.Indicator />
              <Alert.Content>
                <Alert.Title>
                  Not done for {order.data.failed} of {count(order.data.results.length, "agent")}
                </Alert.Title>
                <Results done={order.data} />
              </Alert.Content>
            </Alert.Root>
          ) : undefined}
        </Stack>
      </form>
    </Modal>
  );
};

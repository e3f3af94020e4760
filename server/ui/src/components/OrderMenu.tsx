import { Button, Menu, Portal, Stack, Text } from "@chakra-ui/react";
import { useRef, useState } from "react";

import type { Agent, AgentAction } from "../api/client";
import { ALL_ORDERS, ORDERS } from "../orders";
import { ChevronDown } from "./icons";
import { OrderDialog } from "./OrderDialog";
import { useRights } from "./rights";

/** Why the order makes no sense for any of these agents; null: it does for one at least. */
const refusalFor = (action: AgentAction, agents: readonly Agent[]): string | null => {
  const refusals = agents.map((agent) => ORDERS[action].refusal?.(agent) ?? null);
  return refusals.some((refusal) => refusal === null) ? null : (refusals[0] ?? null);
};

type Props = {
  readonly agents: readonly Agent[];
  readonly label: string;
  readonly onRemoved?: () => void;
};

export const OrderMenu = ({ agents, label, onRemoved }: Props) => {
  const [action, setAction] = useState<AgentAction | null>(null);
  const [asked, setAsked] = useState<readonly Agent[]>([]);
  const { mayChange, whyNot } = useRights();
  const button = useRef<HTMLButtonElement>(null);
  return (
    <>
      <Menu.Root
        onSelect={({ value }) => {
          // Those that were chosen now, whatever the list shows when the order is given.
          setAsked(agents);
          setAction(value as AgentAction);
        }}
        positioning={{ placement: "bottom-end" }}
      >
        <Menu.Trigger asChild>
          <Button disabled={!mayChange || agents.length === 0} ref={button} size="sm" title={whyNot} variant="outline">
            {label}
            <ChevronDown />
          </Button>
        </Menu.Trigger>
        <Portal>
          <Menu.Positioner>
            <Menu.Content>
              {ALL_ORDERS.map((each) => {
                const refusal = refusalFor(each, agents);
                return (
                  <Menu.Item
                    color={ORDERS[each].danger === true ? "fg.error" : "fg"}
                    disabled={refusal !== null}
                    key={each}
                    value={each}
                  >
                    <Stack gap={0}>
                      {ORDERS[each].label}
                      {refusal === null ? undefined : <Text fontSize="xs">{refusal}</Text>}
                    </Stack>
                  </Menu.Item>
                );
              })}
            </Menu.Content>
          </Menu.Positioner>
        </Portal>
      </Menu.Root>
      {action === null ? undefined : (
        <OrderDialog
          action={action}
          agents={asked}
          onClose={() => setAction(null)}
          onDone={(done) => {
            if (action === "delete" && done.failed === 0) onRemoved?.();
          }}
          returnTo={button}
        />
      )}
    </>
  );
};

import { Box, Button, Flex, Input, InputGroup, NativeSelect } from "@chakra-ui/react";
import { type ReactNode, useEffect, useRef, useState } from "react";
import { useSearchParams } from "react-router-dom";

import { useQueues } from "../api/queries";
import { SearchIcon } from "./icons";

/** What is chosen on a page lives in its address, so that it can be shared and survives a reload. */
export const useChosen = (): [(name: string) => string, (changes: Record<string, string>) => void] => {
  const [params, setParams] = useSearchParams();
  const choose = (changes: Record<string, string>) =>
    setParams(
      (before) => {
        const next = new URLSearchParams(before);
        // Another choice is another list: from its beginning.
        next.delete("offset");
        for (const [name, value] of Object.entries(changes)) {
          if (value === "") next.delete(name);
          else next.set(name, value);
        }
        return next;
      },
      { replace: true },
    );
  return [(name) => params.get(name) ?? "", choose];
};

/** Whether one of these filters is set, and what clears them. */
export const useFiltered = (filters: readonly string[]): { filtered: boolean; reset: () => void } => {
  const [chosen, choose] = useChosen();
  return {
    filtered: filters.some((name) => chosen(name) !== ""),
    reset: () => choose(Object.fromEntries(filters.map((name) => [name, ""]))),
  };
};

/** Those of these filters that are set. */
export const filtersSet = <Name extends string>(
  chosen: (name: string) => string,
  filters: readonly Name[],
): { [name in Name]?: string } => {
  const set: { [name in Name]?: string } = {};
  for (const name of filters) if (chosen(name) !== "") set[name] = chosen(name);
  return set;
};

type SearchProps = { readonly label: string; readonly onChange: (text: string) => void; readonly value: string };

/** Passes on what is typed once it has rested for a moment. */
export const Search = ({ label, onChange, value }: SearchProps) => {
  const [text, setText] = useState(value);
  const passed = useRef(value);
  const pass = useRef(onChange);
  pass.current = onChange;
  useEffect(() => {
    if (text === passed.current) return undefined;
    const timer = setTimeout(() => {
      passed.current = text;
      pass.current(text);
    }, 300);
    return () => clearTimeout(timer);
  }, [text]);
  useEffect(() => {
    if (value === passed.current) return;
    passed.current = value;
    setText(value);
  }, [value]);
  return (
    <Box flex={{ base: "1 1 100%", md: "1 1 14rem" }}>
      <InputGroup startElement={<SearchIcon />}>
        <Input
          aria-label={label}
          onChange={(event) => setText(event.target.value)}
          placeholder={label}
          size="sm"
          type="search"
          value={text}
        />
      </InputGroup>
    </Box>
  );
};

type ChoiceProps = {
  readonly all: string;
  readonly label: string;
  readonly onChange: (value: string) => void;
  readonly options: readonly string[];
  readonly value: string;
};

export const Choice = ({ all, label, onChange, options, value }: ChoiceProps) => (
  <NativeSelect.Root flex={{ base: "1 1 7rem", md: "0 1 13rem" }} minWidth={0} size="sm">
    <NativeSelect.Field aria-label={label} onChange={(event) => onChange(event.target.value)} value={value}>
      <option value="">{all}</option>
      {[...new Set(value === "" ? options : [...options, value])].map((option) => (
        <option key={option} value={option}>
          {option}
        </option>
      ))}
    </NativeSelect.Field>
    <NativeSelect.Indicator />
  </NativeSelect.Root>
);

/** Narrows down to one queue. */
export const QueueChoice = () => {
  const [chosen, choose] = useChosen();
  const queues = useQueues();
  return (
    <Choice
      all="All queues"
      label="Queue"
      onChange={(queue) => choose({ queue })}
      options={(queues.data?.items ?? []).map((queue) => queue.name)}
      value={chosen("queue")}
    />
  );
};

type BarProps = { readonly children: ReactNode; readonly filters: readonly string[] };

/** The filters of a page, and what clears them. */
export const FilterBar = ({ children, filters }: BarProps) => {
  const { filtered, reset } = useFiltered(filters);
  return (
    <Flex align="center" gap={2} role="search" wrap="wrap">
      {children}
      {filtered ? (
        <Button onClick={reset} size="sm" variant="ghost">
          Clear
        </Button>
      ) : undefined}
    </Flex>
  );
};

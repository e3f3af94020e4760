import { Alert, Button, Skeleton, Stack, Text } from "@chakra-ui/react";
import type { UseQueryResult } from "@tanstack/react-query";
import type { ReactNode } from "react";

import { ApiError } from "../api/client";
import { dateTime } from "../format";

const help = (error: Error): string => {
  const status = error instanceof ApiError ? error.status : -1;
  if (status === 0) return "This page goes on trying by itself.";
  if (status === 401) return "Log in again in another tab, or load this page again.";
  if (status === 403) return "Whoever looks after Airflow can give you the right to see the edge agents.";
  if (status === 503)
    return "The tables of the edge agents may be missing: run 'airflow db migrate' and look at the API server's log.";
  if (status >= 500) return "The API server's log says more.";
  return "";
};

export const Fault = ({ error, onRetry }: { readonly error: Error; readonly onRetry?: () => void }) => (
  <Alert.Root role="alert" status="error">
    <Alert.Indicator />
    <Alert.Content>
      <Alert.Title>{error.message}</Alert.Title>
      <Alert.Description>{help(error)}</Alert.Description>
    </Alert.Content>
    {onRetry === undefined ? undefined : (
      <Button alignSelf="center" colorPalette="red" onClick={onRetry} size="sm" variant="outline">
        Try again
      </Button>
    )}
  </Alert.Root>
);

type Props<Data> = {
  readonly children: (data: Data) => ReactNode;
  readonly query: UseQueryResult<Data, Error>;
  readonly rows?: number;
};

/** What a question to the server has brought: nothing yet, an error, an answer, or an old answer and an error. */
export function Answer<Data>({ children, query, rows = 4 }: Props<Data>) {
  const { data, dataUpdatedAt, error, refetch } = query;
  if (data === undefined) {
    if (error !== null) return <Fault error={error} onRetry={() => void refetch()} />;
    return (
      <Stack aria-busy aria-label="Loading" role="status">
        {Array.from({ length: rows }, (_, row) => (
          // biome-ignore lint/suspicious/noArrayIndexKey: they are all alike
          <Skeleton height={6} key={row} />
        ))}
      </Stack>
    );
  }
  return (
    <Stack gap={3}>
      {error === null ? undefined : (
        <Alert.Root alignItems="center" role="status" size="sm" status="warning">
          <Alert.Indicator />
          <Alert.Content>
            <Text>
              Not up to date: {error.message} This is how it was at {dateTime(dataUpdatedAt)}.
            </Text>
          </Alert.Content>
          <Button onClick={() => void refetch()} size="xs" variant="outline">
            Try again
          </Button>
        </Alert.Root>
      )}
      {children(data)}
    </Stack>
  );
}

import { Box, Flex, Heading, HStack, Table, Text } from "@chakra-ui/react";
import type { ReactNode } from "react";

/** Columns that a phone has no room for, and those that only a wide screen has. */
export const middle = { base: "none", md: "table-cell" };
export const wide = { base: "none", lg: "table-cell" };

type HeadProps = { readonly children?: ReactNode; readonly title: string; readonly total?: number | undefined };

/** The title of a page, how many it lists, and what can be done there. */
export const PageHead = ({ children, title, total }: HeadProps) => (
  <Flex align="center" gap={3} justify="space-between" wrap="wrap">
    <HStack align="baseline">
      <Heading as="h2" size="md">
        {title}
      </Heading>
      {total === undefined ? undefined : <Text color="fg.muted">{total}</Text>}
    </HStack>
    {children}
  </Flex>
);

/** A table that is scrolled where it is wider than the page. */
export const DataTable = ({ children }: { readonly children: ReactNode }) => (
  <Box borderRadius="lg" borderWidth={1} overflowX="auto">
    <Table.Root size="sm">{children}</Table.Root>
  </Box>
);

/** Whose it is, where Airflow has teams. */
export const OfTeam = ({ team }: { readonly team: string | null }) =>
  team === null ? null : (
    <Text as="span" color="fg.muted" fontWeight="normal">
      {" "}
      of team {team}
    </Text>
  );

import { Button, HStack, Text } from "@chakra-ui/react";

type Props = {
  readonly limit: number;
  readonly offset: number;
  readonly onMove: (offset: number) => void;
  readonly total: number;
};

export const Paging = ({ limit, offset, onMove, total }: Props) => {
  if (total <= limit && offset === 0) return null;
  // What was on a later page may have gone meanwhile.
  const last = Math.floor(Math.max(0, total - 1) / limit) * limit;
  return (
    <HStack as="nav" aria-label="Pages" justify="end">
      <Text fontSize="sm">
        {offset >= total ? "none" : `${offset + 1} to ${Math.min(offset + limit, total)}`} of {total}
      </Text>
      <Button
        disabled={offset === 0}
        onClick={() => onMove(Math.max(0, Math.min(last, offset - limit)))}
        size="xs"
        variant="outline"
      >
        Back
      </Button>
      <Button disabled={offset + limit >= total} onClick={() => onMove(offset + limit)} size="xs" variant="outline">
        Next
      </Button>
    </HStack>
  );
};

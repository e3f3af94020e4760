import { Button, Field, Input, Stack, Text } from "@chakra-ui/react";
import { useState } from "react";

import type { Job } from "../api/client";
import { useCancelJob } from "../api/queries";
import { Fault } from "./Answer";
import { Modal } from "./Modal";
import { useNotify } from "./notices";

type Props = { readonly job: Job; readonly onClose: () => void };

export const CancelDialog = ({ job, onClose }: Props) => {
  const [reason, setReason] = useState("");
  const notify = useNotify();
  const cancel = useCancelJob();
  const name = job.task_id ?? job.kind.replace("_", " ");
  const submit = () => {
    if (cancel.isPending) return;
    cancel.mutate(
      { id: job.id, reason: reason.trim() === "" ? null : reason.trim() },
      {
        onSuccess: (done) => {
          notify({ ok: done.ok, text: `${name}: ${done.message}` });
          onClose();
        },
      },
    );
  };
  return (
    <Modal
      buttons={
        <>
          <Button onClick={onClose} variant="outline">
            Not now
          </Button>
          <Button colorPalette="red" form="edge-agents-cancel" loading={cancel.isPending} type="submit">
            Cancel the job
          </Button>
        </>
      }
      danger
      onClose={onClose}
      title={`Cancel ${name}`}
    >
      <form
        id="edge-agents-cancel"
        onSubmit={(event) => {
          event.preventDefault();
          submit();
        }}
      >
        <Stack gap={4}>
          <Text>
            The job ends now, with everything it has started. Airflow takes it for failed, and tries again if the task
            has retries left.
          </Text>
          <Field.Root>
            <Field.Label>Reason</Field.Label>
            <Input maxLength={2000} onChange={(event) => setReason(event.target.value)} value={reason} />
          </Field.Root>
          {cancel.error === null ? undefined : <Fault error={cancel.error} />}
        </Stack>
      </form>
    </Modal>
  );
};

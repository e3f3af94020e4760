import { CloseButton, Dialog, Portal } from "@chakra-ui/react";
import type { ReactNode, RefObject } from "react";

type Props = {
  readonly buttons: ReactNode;
  readonly children: ReactNode;
  readonly danger?: boolean;
  readonly onClose: () => void;
  /** What has the focus when it is closed; without, what had it before. */
  readonly returnTo?: RefObject<HTMLElement | null>;
  readonly title: string;
};

/** A dialog over the page; Escape, the cross and a click beside it close it. */
export const Modal = ({ buttons, children, danger = false, onClose, returnTo, title }: Props) => (
  <Dialog.Root
    onOpenChange={({ open }) => open || onClose()}
    open
    role={danger ? "alertdialog" : "dialog"}
    {...(returnTo === undefined ? {} : { finalFocusEl: () => returnTo.current })}
  >
    <Portal>
      <Dialog.Backdrop />
      <Dialog.Positioner p={3}>
        <Dialog.Content data-edge-agents="">
          <Dialog.Header>
            <Dialog.Title>{title}</Dialog.Title>
          </Dialog.Header>
          <Dialog.Body>{children}</Dialog.Body>
          <Dialog.Footer>{buttons}</Dialog.Footer>
          <Dialog.CloseTrigger asChild>
            <CloseButton size="sm" />
          </Dialog.CloseTrigger>
        </Dialog.Content>
      </Dialog.Positioner>
    </Portal>
  </Dialog.Root>
);

import { Alert, IconButton } from "@chakra-ui/react";
import { createContext, type ReactNode, useCallback, useContext, useEffect, useState } from "react";

import { CloseIcon } from "./icons";

type Notice = { readonly ok: boolean; readonly text: string };

const Context = createContext<(notice: Notice) => void>(() => undefined);

/** Returns what tells the user that something was done. */
export const useNotify = () => useContext(Context);

const SHOWN_MS = 12_000;

export const NoticeProvider = ({ children }: { readonly children: ReactNode }) => {
  const [notice, setNotice] = useState<Notice | null>(null);
  const notify = useCallback((next: Notice) => setNotice(next), []);
  useEffect(() => {
    if (notice === null || !notice.ok) return undefined;
    const timer = setTimeout(() => setNotice(null), SHOWN_MS);
    return () => clearTimeout(timer);
  }, [notice]);
  return (
    <Context value={notify}>
      <div aria-live="polite">
        {notice === null ? undefined : (
          <Alert.Root alignItems="center" mb={3} size="sm" status={notice.ok ? "success" : "error"}>
            <Alert.Indicator />
            <Alert.Content whiteSpace="pre-line">{notice.text}</Alert.Content>
            <IconButton aria-label="Dismiss" onClick={() => setNotice(null)} size="2xs" variant="ghost">
              <CloseIcon />
            </IconButton>
          </Alert.Root>
        )}
      </div>
      {children}
    </Context>
  );
};

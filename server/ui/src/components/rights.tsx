import { Text } from "@chakra-ui/react";
import { createContext, type ReactNode, useContext } from "react";

import { useMe } from "../api/queries";

type Rights = { readonly known: boolean; readonly mayChange: boolean; readonly whyNot: string };

const Context = createContext<Rights>({ known: false, mayChange: false, whyNot: "" });

/** What the user may do here; the server asks again with each order. */
export const useRights = () => useContext(Context);

export const RightsProvider = ({ children }: { readonly children: ReactNode }) => {
  const { data, error } = useMe();
  let whyNot = "";
  if (data === undefined) whyNot = error === null ? "Your rights are being looked up." : error.message;
  else if (!data.can_change) whyNot = `${data.user} may look at the edge agents, but not change them.`;
  const known = data !== undefined || error !== null;
  return <Context value={{ known, mayChange: data?.can_change ?? false, whyNot }}>{children}</Context>;
};

/** Says why nothing can be changed here. */
export const WhyNot = () => {
  const { known, mayChange, whyNot } = useRights();
  if (mayChange || !known) return null;
  return (
    <Text color="fg.muted" fontSize="sm">
      {whyNot}
    </Text>
  );
};

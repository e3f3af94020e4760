import { createContext, type ReactNode, useContext } from "react";

import { useMe } from "../api/queries";

type Rights = { readonly mayChange: boolean; readonly whyNot: string };

const Context = createContext<Rights>({ mayChange: false, whyNot: "" });

/** What the user may do here; the server asks again with each order. */
export const useRights = () => useContext(Context);

export const RightsProvider = ({ children }: { readonly children: ReactNode }) => {
  const { data, error } = useMe();
  let whyNot = "";
  if (data === undefined) whyNot = error === null ? "Your rights are being looked up." : error.message;
  else if (!data.can_change) whyNot = `${data.user} may look at the edge agents, but not change them.`;
  return <Context value={{ mayChange: data?.can_change ?? false, whyNot }}>{children}</Context>;
};

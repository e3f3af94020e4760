import { dateTime, duration } from "../format";
import { useNow } from "./now";

type Props = { readonly at: string | null | undefined; readonly never?: string; readonly suffix?: string };

/** How long ago something was; the exact time is its title. */
export const Ago = ({ at, never = "never", suffix = " ago" }: Props) => {
  const now = useNow();
  if (at === null || at === undefined) return <>{never}</>;
  const seconds = Math.max(0, Math.floor((now - Date.parse(at)) / 1_000));
  return (
    <time dateTime={at} style={{ whiteSpace: "nowrap" }} title={dateTime(at)}>
      {seconds < 2 && suffix === " ago" ? "just now" : `${duration(seconds)}${suffix}`}
    </time>
  );
};

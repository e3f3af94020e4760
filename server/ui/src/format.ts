/** The time zone that the user has chosen in Airflow, which keeps it in the browser. */
const timeZone = (): string | undefined => {
  try {
    const chosen: unknown = JSON.parse(localStorage.getItem("timezone") ?? "null");
    if (typeof chosen === "string" && chosen !== "local" && chosen !== "") {
      new Intl.DateTimeFormat("en", { timeZone: chosen });
      return chosen;
    }
  } catch {
    // Not one that this browser knows: its own.
  }
  return undefined;
};

const inZone = (options: Intl.DateTimeFormatOptions) => {
  const zone = timeZone();
  return new Intl.DateTimeFormat("sv-SE", zone === undefined ? options : { ...options, timeZone: zone });
};

export const dateTime = (text: string | number): string =>
  inZone({ dateStyle: "short", timeStyle: "medium" }).format(new Date(text));

export const clock = (at: number, withDay: boolean): string =>
  inZone(
    withDay
      ? { day: "2-digit", hour: "2-digit", minute: "2-digit", month: "2-digit" }
      : { hour: "2-digit", minute: "2-digit" },
  ).format(at);

/** `42 s`, `3 min`, `2 h 5 min`, `4 d 2 h`. */
export const duration = (seconds: number): string => {
  if (seconds < 10 && !Number.isInteger(seconds)) return `${seconds.toFixed(seconds < 1 ? 2 : 1)} s`;
  const whole = Math.round(seconds);
  if (whole < 90) return `${whole} s`;
  const minutes = Math.round(whole / 60);
  if (minutes < 90) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return minutes % 60 === 0 ? `${hours} h` : `${hours} h ${minutes % 60} min`;
  return hours % 24 === 0 ? `${hours / 24} d` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
};

export const bytes = (size: number): string => {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let value = size;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
};

/** The parts of a text that are separated by commas. */
export const listed = (text: string): string[] =>
  text
    .split(",")
    .map((part) => part.trim())
    .filter((part) => part !== "");

export const count = (number: number, one: string, many = `${one}s`): string =>
  `${number} ${number === 1 ? one : many}`;

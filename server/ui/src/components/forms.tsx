import { Field, NativeSelect } from "@chakra-ui/react";

type Props<Value extends number | string> = {
  readonly label: string;
  readonly onChange: (value: string) => void;
  readonly options: readonly (readonly [Value, string])[];
  readonly value: Value;
};

/** One of several, each with its words. */
export function Select<Value extends number | string>({ label, onChange, options, value }: Props<Value>) {
  return (
    <Field.Root>
      <Field.Label>{label}</Field.Label>
      <NativeSelect.Root>
        <NativeSelect.Field onChange={(event) => onChange(event.target.value)} value={value}>
          {options.map(([key, words]) => (
            <option key={key} value={key}>
              {words}
            </option>
          ))}
        </NativeSelect.Field>
        <NativeSelect.Indicator />
      </NativeSelect.Root>
    </Field.Root>
  );
}

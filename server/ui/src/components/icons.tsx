import { Icon, type IconProps } from "@chakra-ui/react";
import type { ReactNode } from "react";

const draw = (drawing: ReactNode) => (props: IconProps) => (
  <Icon aria-hidden asChild boxSize={4} {...props}>
    {/* biome-ignore lint/a11y/noSvgWithoutTitle: hidden, for there are always words beside it */}
    <svg
      fill="none"
      stroke="currentColor"
      strokeLinecap="round"
      strokeLinejoin="round"
      strokeWidth="2"
      viewBox="0 0 24 24"
    >
      {drawing}
    </svg>
  </Icon>
);

export const SearchIcon = draw(
  <>
    <circle cx="11" cy="11" r="7" />
    <path d="m21 21-5-5" />
  </>,
);
export const ChevronDown = draw(<path d="m6 9 6 6 6-6" />);
export const ArrowUp = draw(<path d="M12 20V4m-6 6 6-6 6 6" />);
export const ArrowDown = draw(<path d="M12 4v16m-6-6 6 6 6-6" />);
export const WarningIcon = draw(<path d="M12 3 2 20h20L12 3Zm0 7v4m0 3v.01" />);
export const CopyIcon = draw(
  <>
    <rect height="12" rx="2" width="12" x="9" y="9" />
    <path d="M5 15H4a1 1 0 0 1-1-1V4a1 1 0 0 1 1-1h10a1 1 0 0 1 1 1v1" />
  </>,
);
export const CheckIcon = draw(<path d="m4 12 5 5L20 6" />);
export const CloseIcon = draw(<path d="M5 5l14 14M19 5 5 19" />);

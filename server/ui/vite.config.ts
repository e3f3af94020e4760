import { defineConfig } from "vite";

// Airflow's UI shares these with its plugins, as globals (core: src/main.tsx); a second React would not work, and a second
// Chakra would not know the theme.
const shared = {
  "@chakra-ui/react": "ChakraUI",
  react: "React",
  "react/jsx-runtime": "ReactJSXRuntime",
  "react-dom": "ReactDOM",
  "react-router-dom": "ReactRouterDOM",
};

export default defineConfig({
  build: {
    emptyOutDir: false,
    lib: { entry: "src/main.tsx", fileName: () => "edge-agents.js", formats: ["iife"], name: "EdgeAgentsPlugin" },
    outDir: process.env.EDGE_UI_OUT ?? "../src/airflow_edge_server/ui/static",
    rollupOptions: {
      external: Object.keys(shared),
      onwarn: (warning, warn) => {
        // "use client" means nothing in a browser.
        if (warning.code !== "MODULE_LEVEL_DIRECTIVE") warn(warning);
      },
      output: { globals: shared },
    },
    target: "es2022",
  },
  define: { "process.env.NODE_ENV": JSON.stringify("production") },
  esbuild: { jsx: "automatic", legalComments: "none" },
  publicDir: false,
});

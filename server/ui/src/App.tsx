import { Box, Flex, Heading } from "@chakra-ui/react";
import { QueryClientProvider } from "@tanstack/react-query";
import { NavLink, Route, Routes, useLocation } from "react-router-dom";

import { queryClient } from "./api/queries";
import { NoticeProvider } from "./components/notices";
import { RightsProvider } from "./components/rights";
import { Empty, PageLink } from "./components/small";
import { AddPage } from "./pages/AddPage";
import { AgentPage } from "./pages/AgentPage";
import { AgentsPage } from "./pages/AgentsPage";
import { JobsPage } from "./pages/JobsPage";
import { OverviewPage } from "./pages/OverviewPage";
import { QueuesPage } from "./pages/QueuesPage";
import { BASE, pagePath } from "./paths";

const TABS: [string, string][] = [
  ["", "Overview"],
  ["agents", "Agents"],
  ["queues", "Queues"],
  ["jobs", "Jobs"],
  ["add", "Add an agent"],
];

const Tab = ({ label, path }: { readonly label: string; readonly path: string }) => (
  <NavLink end={path === ""} to={path === "" ? BASE : pagePath(path)}>
    {({ isActive }) => (
      <Box
        borderBottomColor={isActive ? "border.info" : "transparent"}
        borderBottomWidth={3}
        color={isActive ? "fg" : "fg.muted"}
        fontSize={{ base: "sm", md: "md" }}
        fontWeight="bold"
        pb={2}
        pt={3}
        px={{ base: 2, md: 4 }}
        whiteSpace="nowrap"
      >
        {label}
      </Box>
    )}
  </NavLink>
);

const Nowhere = () => {
  const { pathname } = useLocation();
  return (
    <Empty title="There is no such page">
      {pathname} leads nowhere. <PageLink to={pagePath("agents")}>Show the agents</PageLink>
    </Empty>
  );
};

export const App = () => (
  <QueryClientProvider client={queryClient}>
    <Box data-edge-agents="" height="100%" overflowY="auto" px={3} pb={6}>
      <Heading
        as="h1"
        css={{ clip: "rect(0 0 0 0)", height: "1px", overflow: "hidden", position: "absolute", width: "1px" }}
      >
        Edge agents
      </Heading>
      <Flex aria-label="Edge agents" as="nav" borderBottomWidth={1} mb={3} overflowX="auto">
        {TABS.map(([path, label]) => (
          <Tab key={path} label={label} path={path} />
        ))}
      </Flex>
      <NoticeProvider>
        <RightsProvider>
          <Routes>
            <Route element={<OverviewPage />} index />
            <Route element={<AgentsPage />} path="agents" />
            <Route element={<AgentPage />} path="agents/:name" />
            <Route element={<QueuesPage />} path="queues" />
            <Route element={<JobsPage />} path="jobs" />
            <Route element={<AddPage />} path="add" />
            <Route element={<Nowhere />} path="*" />
          </Routes>
        </RightsProvider>
      </NoticeProvider>
    </Box>
  </QueryClientProvider>
);

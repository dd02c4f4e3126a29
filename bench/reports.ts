/** Which report belongs to which bench. */

import { ServingError } from '../services/lib/process/errors.ts';
import type { BreakdownResult } from './breakdown/measure.ts';
import { reportBreakdown } from './breakdown/report.ts';
import type { DrillsResult } from './drills/judge.ts';
import { reportDrills, reportSoak } from './drills/report.ts';
import type { SoakResult } from './drills/soak.ts';
import type { HandoffResult } from './engine/handoff.ts';
import { type PeersResult, reportPeers } from './engine/peers-report.ts';
import { reportEngine, reportHandoff } from './engine/report.ts';
import type { EngineResult } from './engine/result.ts';
import type { IndexResult } from './indexing/measure.ts';
import type { InterferenceResult } from './interference/measure.ts';
import { reportInterference } from './interference/report.ts';
import type { LoadResult } from './load/measure.ts';
import { reportLoad } from './load/report.ts';
import { reportPlan } from './plan/report.ts';
import type { PlanResult } from './plan/result.ts';
import type { Artifact } from './report/artifact.ts';
import type { Report } from './report/report.ts';
import type { RetrievalResult } from './retrieval/measure.ts';
import type { RecallResult } from './retrieval/recall.ts';
import { reportIndex, reportRecall, reportRetrieval } from './retrieval/report.ts';
import type { TablesResult } from './tables/measure.ts';
import { reportTables } from './tables/report.ts';
import type { TypingResult } from './typing/measure.ts';
import { reportTyping } from './typing/report.ts';

/** @throws ServingError invalid_request for an artifact of an unknown bench. */
export function reportOf(artifact: Artifact): Report {
  switch (artifact.bench) {
    case 'tables':
      return reportTables(artifact as Artifact<TablesResult>);
    case 'load':
      return reportLoad(artifact as Artifact<LoadResult>);
    case 'interference':
      return reportInterference(artifact as Artifact<InterferenceResult>);
    case 'breakdown':
      return reportBreakdown(artifact as Artifact<BreakdownResult>);
    case 'retrieval':
      return reportRetrieval(artifact as Artifact<RetrievalResult>);
    case 'index':
      return reportIndex(artifact as Artifact<IndexResult>);
    case 'typing':
      return reportTyping(artifact as Artifact<TypingResult>);
    case 'plan':
      return reportPlan(artifact as Artifact<PlanResult>);
    case 'peers':
      return reportPeers(artifact as Artifact<PeersResult>);
    case 'engine':
      return reportEngine(artifact as Artifact<EngineResult>);
    case 'handoff':
      return reportHandoff(artifact as Artifact<HandoffResult>);
    case 'recall':
      return reportRecall(artifact as Artifact<RecallResult>);
    case 'drills':
      return reportDrills(artifact as Artifact<DrillsResult>);
    case 'soak':
      return reportSoak(artifact as Artifact<SoakResult>);
    default:
      throw new ServingError('invalid_request', `no report for bench ${JSON.stringify(artifact.bench)}`);
  }
}

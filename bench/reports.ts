/** The registry of benches and of the pages that show their artifacts. */
import { BREAKDOWN } from './breakdown/report.ts';
import { DASHBOARDS_BENCH } from './dashboards/report.ts';
import { DRILLS_BENCH, SOAK_BENCH } from './drills/report.ts';
import { ENGINE, ENGINE_AGAINST, HANDOFF } from './engine/report.ts';
import { FAIRNESS } from './fairness/report.ts';
import { GPU } from './gpu/report.ts';
import { INDEX } from './indexing/report.ts';
import { INTERFERENCE } from './interference/report.ts';
import { LOAD } from './load/report.ts';
import { OBSERVABILITY } from './observability/report.ts';
import { PEERS } from './peers/report.ts';
import { SERVERS } from './peers/servers-report.ts';
import { PLAN } from './plan/report.ts';
import { QUALITY } from './quality/report.ts';
import type { Bench } from './report/report.ts';
import { DENSE, RECALL, RETRIEVAL } from './retrieval/report.ts';
import { SPECULATION } from './speculation/report.ts';
import { START } from './start/report.ts';
import { TABLES } from './tables/report.ts';
import { TRAINING } from './training/report.ts';
import { TYPING } from './typing/report.ts';

export interface Page {
  /** Folder of the page, beside the overview. */
  readonly folder: string;
  /** The benches whose artifacts it shows, in this order. */
  readonly benches: readonly Bench<unknown>[];
}

/** Pages in the order of the overview. */
export const PAGES: readonly Page[] = [
  { folder: 'tables', benches: [TABLES] },
  { folder: 'quality', benches: [QUALITY] },
  { folder: 'peers', benches: [PEERS, SERVERS] },
  { folder: 'engine', benches: [ENGINE, ENGINE_AGAINST, HANDOFF] },
  { folder: 'gpu', benches: [GPU] },
  { folder: 'load', benches: [LOAD] },
  { folder: 'interference', benches: [INTERFERENCE] },
  { folder: 'breakdown', benches: [BREAKDOWN] },
  { folder: 'observability', benches: [OBSERVABILITY, DASHBOARDS_BENCH] },
  { folder: 'retrieval', benches: [RETRIEVAL, RECALL, DENSE] },
  { folder: 'indexing', benches: [INDEX] },
  { folder: 'training', benches: [TRAINING] },
  { folder: 'typing', benches: [TYPING] },
  { folder: 'plan', benches: [PLAN] },
  { folder: 'fairness', benches: [FAIRNESS] },
  { folder: 'speculation', benches: [SPECULATION] },
  { folder: 'start', benches: [START] },
  { folder: 'drills', benches: [DRILLS_BENCH, SOAK_BENCH] },
];

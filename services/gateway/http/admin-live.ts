/** The state of the gateway and its workers at one moment, as the operator page shows it. */
import { hostname } from 'node:os';
import { BUILD_INFO } from '../../lib/process/build-info.ts';
import type { FlightRecorder } from '../completion/flight-recorder.ts';
import type { Rollout } from '../rollout/rollout.ts';
import type { WorkerPool } from '../workers/worker-pool.ts';
import type { LiveBody, RequestBody, WorkerBody } from './admin-answers.ts';

/** The workers of one bundle, and what waits for them. */
interface WatchedArm {
  readonly name: string;
  readonly pool: Pick<WorkerPool, 'known'>;
  readonly waiting: { readonly prompts: number; readonly tokens: number };
}

export interface LiveParts {
  /** Name of the model in the API. */
  readonly modelName: string;
  /** SHA-256 (hex) of the bundle. */
  readonly fingerprint: string;
  readonly rollout: Rollout;
  readonly readiness: { readonly problem: string | undefined };
}

export interface WatchedGateway {
  readonly flights: FlightRecorder;
  /** The bundle that is served, and the candidate of a rollout. */
  readonly arms: () => readonly WatchedArm[];
  /** Gateways that share the system, this one included. */
  readonly gateways: () => number;
}

/** Requests of one event, at most: 500 KB or so. The newest ones count. */
const MOST_REQUESTS = 500;

/** @param after number of the last request that the reader has. */
export function liveBody(parts: LiveParts, { flights, arms, gateways }: WatchedGateway, after: number): LiveBody {
  const { modelName, fingerprint, rollout, readiness } = parts;
  const watched = arms();
  const sum = (of: (arm: WatchedArm) => number) => watched.reduce((total, arm) => total + of(arm), 0);
  return {
    object: 'admin.live',
    gateway: {
      name: hostname(),
      version: BUILD_INFO.version,
      model: modelName,
      fingerprint,
      uptime_s: Math.floor(process.uptime()),
      gateways: gateways(),
      problem: readiness.problem ?? null,
      rollout: rollout.status.phase,
    },
    queue: { prompts: sum(({ waiting }) => waiting.prompts), tokens: sum(({ waiting }) => waiting.tokens) },
    running: flights.phases,
    workers: watched.flatMap(workersOf),
    hand_overs: flights.handOvers,
    // The recorder does not know the form of a log line, which this is.
    requests: flights.since(after, MOST_REQUESTS) as readonly unknown[] as readonly RequestBody[],
  };
}

function workersOf({ name, pool }: WatchedArm): WorkerBody[] {
  const { prefill, decode } = pool.known;
  const bodyOf = (role: WorkerBody['role']) => (worker: (typeof prefill | typeof decode)[number]) => {
    const { address, usable, problem, jobs, capacity, description } = worker;
    return {
      arm: name,
      role,
      address,
      usable,
      problem: usable ? null : problem,
      device: description?.device ?? '',
      slots: description?.slots ?? 0,
      free_slots: description?.freeSlots ?? 0,
      queued: description?.queued ?? 0,
      capacity,
      jobs,
      prefill_tokens_per_second: description?.prefillTokensPerSecond ?? 0,
      overdue_ms: description?.overdueMs ?? 0,
    };
  };
  return [...prefill.map(bodyOf('prefill')), ...decode.map(bodyOf('decode'))];
}

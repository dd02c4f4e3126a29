/**
 * What `/admin/api` answers, as the operator page reads it: this file is types alone, and the page is checked against
 * them. Names of figures are those of metrics and log lines. Nothing here is text of a client.
 */

/** One worker, as this gateway knows it. What it says of itself counts the work of all gateways. */
export interface WorkerBody {
  readonly arm: string;
  readonly role: 'prefill' | 'decode';
  /** host:port */
  readonly address: string;
  readonly usable: boolean;
  /** Why it cannot be used; null where it can. */
  readonly problem: string | null;
  /** What it computes on; '' while it has not answered. */
  readonly device: string;
  readonly slots: number;
  readonly free_slots: number;
  /** Prefill: prompt tokens that wait or compute. Decode: sequences that wait for a slot. */
  readonly queued: number;
  /** Positions that one slot holds. */
  readonly capacity: number;
  /** Calls that this gateway has given it and that have work left. */
  readonly jobs: number;
  /** Prompt tokens a second; 0 where none has been measured, and for decode. */
  readonly prefill_tokens_per_second: number;
  /** ms by which the engine's run is late. */
  readonly overdue_ms: number;
}

/** KV caches between two workers, as this gateway has had them handed over since it started. */
export interface HandOverBody {
  readonly from: string;
  readonly to: string;
  /** On their way now. */
  readonly flying: number;
  readonly done: number;
  /** Bytes of KV that were pulled; 0 where one process has both roles. */
  readonly bytes: number;
}

interface ActivityBody {
  readonly name: string;
  readonly worker?: string;
  readonly source?: string;
  /** ms since the request's body had come. */
  readonly from_ms: number;
  /** Not there where it went on after the request's end. */
  readonly to_ms?: number;
  readonly error?: string;
  readonly marks: readonly { readonly name: string; readonly at_ms: number }[];
}

/** A request that has ended: the fields of its log line, and its waterfall. */
export interface RequestBody {
  readonly number: number;
  readonly request_id: string;
  readonly ended_at: string;
  readonly route: string;
  readonly status: number;
  /** Code of its error. */
  readonly code?: string;
  readonly tenant?: string;
  readonly repo?: string;
  readonly arm: string;
  readonly replays: number;
  readonly usage: {
    readonly prompt_tokens: number;
    readonly completion_tokens: number;
    readonly prompt_tokens_details: { readonly cached_tokens: number; readonly soft_tokens: number };
  };
  readonly finish: readonly string[];
  readonly rag?: { readonly mode: string; readonly chunks: number; readonly degraded?: string };
  /** ms per event since `received`, and `…_ms` for each stage: see request/timeline.ts. */
  readonly timeline: Readonly<Record<string, number>>;
  readonly activities: readonly ActivityBody[];
  readonly activities_left_out: number;
}

/** One event of `GET /admin/api/live`. */
export interface LiveBody {
  readonly object: 'admin.live';
  readonly gateway: {
    /** Name of the machine or pod. */
    readonly name: string;
    readonly version: string;
    readonly model: string;
    readonly fingerprint: string;
    readonly uptime_s: number;
    /** Gateways that share this system, this one included; 1 where they do not hear each other. */
    readonly gateways: number;
    /** Why completions would fail now; null where they would not. */
    readonly problem: string | null;
    /** Phase of the rollout. */
    readonly rollout: string;
  };
  /** What waits in this gateway for workers. */
  readonly queue: { readonly prompts: number; readonly tokens: number };
  /** Requests of this gateway that run, by the event of the timeline that came last. */
  readonly running: Readonly<Record<string, number>>;
  readonly workers: readonly WorkerBody[];
  readonly hand_overs: readonly HandOverBody[];
  /** Requests that have ended since the event before, the newest of them. */
  readonly requests: readonly RequestBody[];
}

export interface RepoBody {
  readonly tenant: string;
  readonly repo: string;
  readonly version: string;
  /** Whether it has no vectors of the served encoder and projector. */
  readonly stale: boolean;
  readonly modes: readonly string[];
  readonly chunks: number;
  readonly files: number;
  readonly languages: Readonly<Record<string, number>>;
  /** ISO 8601. */
  readonly updated_at: string;
}

/** A repository whose index cannot be read. */
export interface BrokenRepoBody {
  readonly tenant: string;
  readonly repo: string;
  readonly error: { readonly code: string; readonly message: string };
}

/** `GET /admin/api/repos` */
export interface ReposBody {
  readonly object: 'list';
  readonly data: readonly (RepoBody | BrokenRepoBody)[];
  /** Value of `after` for the next page; null on the last one. */
  readonly next: string | null;
}

/** `GET /admin/api/left-out` */
export interface LeftOutBody {
  readonly object: 'admin.left_out';
  readonly tenant: string;
  readonly repo: string;
  /** Files by reason; null where the index was made by a release that did not keep it. */
  readonly counts: Readonly<Record<string, number>> | null;
  /** Some of them by name; a folder ends in `/`. */
  readonly files: readonly { readonly path: string; readonly reason: string }[];
}

/**
 * What became of completions: whether they were shown, taken or dismissed, as editors report it. It is counted by the
 * kind of context that they had, so that an operator sees whether context helps. No text is kept.
 */
import { metrics } from '../../lib/process/metrics.ts';
import { TenantCache } from '../../lib/rag/store/tenant-cache.ts';
import type { RagMode } from '../request.ts';
import type { RequestRecord } from './request-record.ts';

/** An editor has shown a completion, its user has taken it, or has not. */
export const COMPLETION_EVENTS = ['view', 'select', 'dismiss'] as const;
export type CompletionEvent = (typeof COMPLETION_EVENTS)[number];

/** `none`: the request asked for no context. `unknown`: the completion is not remembered. */
type Mode = RagMode | 'none' | 'unknown';

interface Remembered {
  readonly mode: Mode;
  /** The bundle that served it. */
  readonly arm: string;
  /** Events that were counted: each counts once. */
  readonly seen: Set<string>;
}

/** Bytes of all that is remembered: 16,000 completions. */
const LIMIT_BYTES = 8 << 20;
/** Bytes of an entry, about: its key, and a set of a few events. */
const ENTRY_BYTES = 512;
/** Time for which a completion is remembered of which nobody has told anything, in ms. */
const KEEP_MS = 600_000;
/** Choices of one completion whose events count. */
const MAX_CHOICES = 128;

export class Acceptance {
  readonly #completions: TenantCache<Remembered>;

  constructor(limitBytes = LIMIT_BYTES) {
    this.#completions = new TenantCache(limitBytes, KEEP_MS);
  }

  /** A completion has been answered. */
  answered(tenant: string, id: string, { context, arm }: Pick<RequestRecord, 'context' | 'arm'>): void {
    this.#completions.set(`${tenant}:${id}`, { mode: context?.mode ?? 'none', arm, seen: new Set() }, ENTRY_BYTES);
  }

  /** Counts an event of a choice. One that was counted before, or of a completion of another tenant, tells nothing. */
  count(tenant: string, id: string, choice: number, event: CompletionEvent): void {
    const completion = this.#completions.get(`${tenant}:${id}`);
    if (completion === undefined) return void metrics.completionEvents.inc({ event, mode: 'unknown' });
    const key = `${event} ${choice}`;
    if (choice >= MAX_CHOICES || completion.seen.has(key)) return;
    completion.seen.add(key);
    metrics.completionEvents.inc({ event, mode: completion.mode });
    metrics.armEvents.inc({ event, arm: completion.arm });
  }
}

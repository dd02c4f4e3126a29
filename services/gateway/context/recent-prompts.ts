/**
 * Finds the series that a prompt goes on, for clients that name no session: between two keystrokes most of a prompt is
 * the same. Prompts of one client are compared with its last ones, and what begins as one of them belongs to its
 * series.
 */
import { TenantCache } from '../../lib/rag/store/tenant-cache.ts';
import type { PromptInput } from '../request.ts';
import { hashOf } from './sessions.ts';

/** Prompts of one client that are remembered: the files between which somebody goes back and forth. */
const PROMPTS = 8;
/** Characters of a prompt that are compared, and that are kept of it. */
const KEPT_CHARACTERS = 32_768;
/** A beginning must be so long to count, in characters, and so large a share of the shorter prompt. */
const LEAST_CHARACTERS = 128;
const LEAST_SHARE = 0.5;
/** Memory for the prompts of all tenants, in bytes. A character takes two. */
const LIMIT_BYTES = 32 << 20;
const OVERHEAD_BYTES = 256;
/** Time for which the prompts of a client are remembered that sends no more, in ms: longer than a user reads code. */
const KEEP_MS = 600_000;

interface Recent {
  readonly series: string;
  readonly text: string;
}

export class RecentPrompts {
  readonly #clients: TenantCache<readonly Recent[]>;

  /** @param limitBytes memory for all prompts; each tenant has a share of it. */
  constructor(limitBytes = LIMIT_BYTES) {
    this.#clients = new TenantCache(limitBytes, KEEP_MS);
  }

  /**
   * The series that a prompt goes on, or begins; undefined for one that is too short. A series that begins has the same
   * name at all gateways.
   * @param client tells the clients of a tenant apart.
   */
  seriesOf(tenant: string, client: string, prompt: PromptInput): string | undefined {
    if (prompt.length < LEAST_CHARACTERS) return undefined;
    const text = compared(prompt.slice(0, KEPT_CHARACTERS));
    const key = `${tenant}:${client}`;
    const known = this.#clients.get(key) ?? [];
    let best: Recent | undefined;
    let most = LEAST_CHARACTERS - 1;
    for (const recent of known) {
      const common = commonLength(recent.text, text);
      if (common <= most || common < LEAST_SHARE * Math.min(recent.text.length, text.length)) continue;
      most = common;
      best = recent;
    }
    const series = best?.series ?? hashOf([text.slice(0, LEAST_CHARACTERS)]);
    const kept = [{ series, text }, ...known.filter((recent) => recent.series !== series)].slice(0, PROMPTS);
    const bytes = kept.reduce((sum, recent) => sum + OVERHEAD_BYTES + 2 * recent.text.length, 0);
    this.#clients.set(key, kept, bytes);
    return series;
  }
}

/** A beginning as a string of its own, which keeps nothing of the whole prompt; ids by their last 16 bits. */
const compared = (beginning: PromptInput) =>
  typeof beginning === 'string'
    ? Buffer.from(beginning, 'utf16le').toString('utf16le')
    : Buffer.from(Uint16Array.from(beginning).buffer).toString('utf16le');

/** Characters at the beginning that are the same. */
function commonLength(a: string, b: string): number {
  const most = Math.min(a.length, b.length);
  let length = 0;
  while (length < most && a.charCodeAt(length) === b.charCodeAt(length)) length++;
  return length;
}

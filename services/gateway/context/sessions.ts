/**
 * The memory of sessions: one request of a session leaves something for the next one. Between two keystrokes most of a
 * prompt is the same, and a worker that has computed it need not compute it again, if the next prompt comes to the same
 * worker and begins the same way. So the chunks that stand first in the prompt change only when they no longer fit.
 */
import { createHash } from 'node:crypto';
import { TenantCache } from '../../lib/rag/store/tenant-cache.ts';
import type { SoftTokens, TokenPrompt } from '../../lib/request/token-prompt.ts';
import type { CompletionRequest } from '../request.ts';
import type { PlacementRequest } from '../workers/worker-pool.ts';
import type { Found, IsCurrent } from './context.ts';

/** The last prompt of a session, served by this gateway. */
interface Served {
  /** host:port of the prefill worker that has it. */
  readonly prefill: string;
  readonly ids: Int32Array;
  /** Digest of its soft tokens. */
  readonly soft: string;
}

/** The last prompt of a session, served by another gateway: as much as one tells the others. */
export interface ServedElsewhere {
  readonly session: string;
  /** host:port of the prefill worker that has it. */
  readonly prefill: string;
  /** See {@link blocksOf}. */
  readonly blocks: string;
}

interface Memory {
  readonly served: Served | ServedElsewhere | undefined;
  readonly found: { readonly key: string; readonly retrieved: Found } | undefined;
}

/**
 * The key of a series of prompts that are alike, one after the other: those of a session or, for clients that name
 * none, those for the same file, or those that go on where the last one was. Keys of two tenants differ, and of two
 * salts: tenants never share KV. A key begins with its tenant, who has a share of the memory.
 */
export function sessionOf({ session, series, rag, cacheSalt }: CompletionRequest, tenant: string): string | undefined {
  if (session !== undefined) return `${tenant}:${hashOf([tenant, cacheSalt, session])}`;
  if (rag?.path !== undefined) return `${tenant}:${hashOf([tenant, cacheSalt, rag.repo, rag.path])}`;
  return series === undefined ? undefined : `${tenant}:${hashOf([tenant, cacheSalt, 'series', series])}`;
}

/**
 * A key of a fixed size: a path may have 4,096 characters, and in a Map all strings of more than 16,383 characters
 * collide, whatever they say.
 */
export const hashOf = (parts: readonly unknown[]) =>
  createHash('sha256').update(JSON.stringify(parts)).digest('base64');

/** Size of all memories: a thousand editors with ten chunks and 2,000 tokens each, at a hidden size of 1536. */
const LIMIT_BYTES = 96 << 20;
/** Size of a memory, and of each of its chunks, besides what they hold. */
const OVERHEAD_BYTES = 1024;
const CHUNK_OVERHEAD_BYTES = 512;
/** The prompt keeps its chunks while at least this share of the newly found ones stands in it already. */
const FITS = 0.6;

/** Share of a prompt that the home of its session is thought to have, where gateways do not hear of each other. */
const HOME_SHARE = 0.5;

type Affinity = Pick<PlacementRequest, 'affinityWorker' | 'affinityTokens' | 'homeOf' | 'homeTokens'>;

export class Sessions {
  readonly #memories: TenantCache<Memory>;
  readonly #announce: ((served: ServedElsewhere) => void) | undefined;

  /**
   * @param limitBytes size of all memories; each tenant has a share of it.
   * @param announce tells other gateways which worker has the last prompt of a session.
   */
  constructor(limitBytes = LIMIT_BYTES, announce?: (served: ServedElsewhere) => void) {
    this.#memories = new TenantCache(limitBytes);
    this.#announce = announce;
  }

  /**
   * The worker to prefer, if there is one, and how much of the prompt it has, unless it has evicted that since. Where
   * nothing is known, the session's home may have some of it: other gateways send it there, too.
   */
  affinity(session: string, prompt: TokenPrompt): Affinity {
    const served = this.#memories.get(session)?.served;
    // Gateways that hear of each other would know: then the session is new, and no detour is worth it.
    if (served === undefined) {
      return { homeOf: session, homeTokens: this.#announce ? 0 : Math.floor(prompt.ids.length * HOME_SHARE) };
    }
    if ('blocks' in served) {
      const same = commonBlocks(served.blocks, blocksOf(session, prompt));
      return { affinityWorker: served.prefill, affinityTokens: same * BLOCK_TOKENS };
    }
    // Soft tokens stand in front: where one differs, nothing after it is the same.
    const affinityTokens = served.soft === digest(prompt.soft) ? commonLength(served.ids, prompt.ids) : 0;
    return { affinityWorker: served.prefill, affinityTokens };
  }

  servedBy(session: string, prefill: string, { ids, soft }: TokenPrompt): void {
    this.#keep(session, { served: { prefill, ids, soft: digest(soft) } });
    this.#announce?.({ session, prefill, blocks: blocksOf(session, { ids, soft }) });
  }

  /** Another gateway has sent a prompt of a session to a worker. What it says is not trusted to have the right form. */
  servedElsewhere(news: unknown): void {
    const { session, prefill, blocks } = (news ?? {}) as Partial<Record<keyof ServedElsewhere, unknown>>;
    if (typeof session !== 'string' || typeof prefill !== 'string' || typeof blocks !== 'string') return;
    if (session.length > MOST_CHARACTERS || prefill.length > MOST_CHARACTERS) return;
    if (blocks.length > MOST_BLOCKS * BLOCK_CHARACTERS) return;
    this.#keep(session, { served: { session, prefill, blocks } });
  }

  /**
   * The chunks of the last prompt, in their order, if they still fit what was found; else what was found.
   * @param key what else must be the same: repository, mode, and so on.
   * @param isCurrent whether a chunk of the last prompt is still what the client has.
   */
  settle(session: string, key: string, found: Found, isCurrent: IsCurrent = () => true): Found {
    const last = this.#memories.get(session)?.found;
    if (last?.key === key && last.retrieved.indexVersion === found.indexVersion && fits(last.retrieved, found)) {
      if (last.retrieved.chunks.every(isCurrent)) return last.retrieved;
    }
    this.#keep(session, { found: { key, retrieved: found } });
    return found;
  }

  #keep(session: string, news: Partial<Memory>): void {
    const before = this.#memories.get(session);
    const memory = { served: before?.served, found: before?.found, ...news };
    this.#memories.set(session, memory, bytesOf(memory));
  }
}

function bytesOf({ served, found }: Memory): number {
  const chunks = found?.retrieved.chunks ?? [];
  const ofChunks = chunks.reduce(
    (sum, { path, text, vector }) => sum + CHUNK_OVERHEAD_BYTES + 2 * (path.length + text.length) + vector.byteLength,
    0,
  );
  const ofFiles = (found?.retrieved.files ?? []).reduce(
    (sum, { path, vector }) => sum + CHUNK_OVERHEAD_BYTES + 2 * path.length + vector.byteLength,
    0,
  );
  const ofPrompt = served === undefined ? 0 : 'blocks' in served ? served.blocks.length : served.ids.byteLength;
  return OVERHEAD_BYTES + ofPrompt + ofChunks + ofFiles;
}

/** Tokens of one block, and blocks of a prompt that are compared: what follows the first 8,192 tokens is not. */
const BLOCK_TOKENS = 32;
const MOST_BLOCKS = 256;
/** Digits of a block: 48 bits. */
const BLOCK_CHARACTERS = 8;
/** Longest session key and address. */
const MOST_CHARACTERS = 300;

/**
 * The whole blocks of a prompt, each as a digest of the session and of all that stands in the prompt up to its end: two
 * prompts of a session are the same as far as their blocks are. 2,000 tokens are 500 characters, and take 0.1 ms.
 */
function blocksOf(session: string, { ids, soft }: TokenPrompt): string {
  let link = `${session} ${digest(soft)}`;
  let blocks = '';
  const whole = Math.min(MOST_BLOCKS, Math.floor(ids.length / BLOCK_TOKENS));
  for (let block = 0; block < whole; block++) {
    const tokens = ids.subarray(block * BLOCK_TOKENS, (block + 1) * BLOCK_TOKENS);
    link = createHash('sha256').update(link).update(tokens).digest('base64url').slice(0, BLOCK_CHARACTERS);
    blocks += link;
  }
  return blocks;
}

/** Blocks at the beginning that are the same. */
function commonBlocks(a: string, b: string): number {
  let same = 0;
  const blockAt = (text: string) => text.slice(same * BLOCK_CHARACTERS, (same + 1) * BLOCK_CHARACTERS);
  while (blockAt(a) !== '' && blockAt(a) === blockAt(b)) same++;
  return same;
}

function fits(old: Found, found: Found): boolean {
  const known = new Set(old.chunks.map(({ id }) => id));
  const kept = found.chunks.filter(({ id }) => known.has(id)).length;
  return kept >= found.chunks.length * FITS && found.chunks.length > 0 === old.chunks.length > 0;
}

function commonLength(a: Int32Array, b: Int32Array): number {
  let length = 0;
  while (length < a.length && length < b.length && a[length] === b[length]) length++;
  return length;
}

const digest = ({ positions, vectors }: SoftTokens) =>
  positions.length === 0 ? '' : createHash('sha256').update(positions).update(vectors).digest('base64');

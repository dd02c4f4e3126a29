// Fills one cache, through its public interface, with ten times what it may hold, and says what that took.
// Argument: the name of a cache in CACHES. Runs what lies in dist/, with --expose-gc.
import { readFile } from 'node:fs/promises';
import { Acceptance } from '../../dist/services/gateway/completion/acceptance.js';
import { FlightRecorder } from '../../dist/services/gateway/completion/flight-recorder.js';
import { TypedThrough } from '../../dist/services/gateway/completion/typed-through.js';
import { completionBody } from '../../dist/services/gateway/http/completion-body.js';
import { Overlays } from '../../dist/services/gateway/context/overlay.js';
import { RecentPrompts } from '../../dist/services/gateway/context/recent-prompts.js';
import { Sessions } from '../../dist/services/gateway/context/sessions.js';
import { leftOutReporter } from '../../dist/services/gateway/context/left-out-rows.js';
import { IndexCache } from '../../dist/services/lib/rag/search/index-cache.js';
import { withRowCache } from '../../dist/services/lib/rag/store/row-cache.js';
import { withShares } from '../../dist/services/lib/rag/store/shares.js';
import { Timeline } from '../../dist/services/lib/request/timeline.js';
import { Tokenizer } from '../../dist/services/lib/text/tokenizer.js';

const MIB = 1024 * 1024;
const BOUND = 8 * MIB;
/** Tenants that fill a cache. */
const TENANTS = 5;
const FINGERPRINT = 'f'.repeat(64);

const idOf = (i) => i.toString(16).padStart(64, '0');
const repoOf = (i) => `tenant${i % TENANTS}:repo${i}`;
const never = new AbortController().signal;
/** A text of its own, which shares no memory with others. */
const text = (i, length) => Buffer.from(`${i} `.repeat(length).slice(0, length)).toString();
const unused = () => Promise.reject(new Error('not used'));

/** A store that makes what it is asked for, and keeps nothing. */
const store = (of) => ({
  address: 'made',
  head: unused,
  snapshot: unused,
  entries: unused,
  contents: unused,
  repositories: unused,
  lock: unused,
  close: async () => {},
  ...of,
});

const CACHES = {
  /** Indexes of 72 chunks with 256 identifiers each take 1.2 MiB. */
  async indexes() {
    const chunks = 72;
    const head = { version: '1'.repeat(16), fingerprint: FINGERPRINT, hidden: 2, files: 1, chunks, languages: {} };
    const cache = new IndexCache(
      store({
        head: async () => head,
        snapshot: async () => ({ head, ids: Buffer.alloc(32 * chunks) }),
        entries: async (repo, ids) =>
          ids.map((id, i) => ({
            id,
            path: `f${i}.py`,
            startLine: 1,
            endLine: 10,
            tokens: Array.from({ length: 256 }, (_, t) => `id_${repo}_${i}_${t}`),
          })),
      }),
      { scorer: unused, limitBytes: BOUND, onLeftOut: () => {} },
    );
    for (let i = 0; i < 72; i++) await cache.load(repoOf(i), never);
    return cache;
  },

  /** Versions that turned out to be too large are remembered as errors. */
  async tooLarge() {
    const head = { version: '1'.repeat(16), fingerprint: FINGERPRINT, hidden: 2, files: 1, chunks: 1e9, languages: {} };
    const made = store({ head: async () => head });
    const cache = new IndexCache(made, { scorer: unused, limitBytes: BOUND, onLeftOut: () => {} });
    for (let i = 0; i < 10_240; i++) await cache.get(repoOf(i), never).catch(() => {});
    return cache;
  },

  /** Files of 16 KiB, every second one of which is not encoded. */
  async overlays() {
    const encode = async ({ chunks }) => ({ fingerprint: 'f', vectors: new Uint8Array(chunks.length * 2_048) });
    let calls = 0;
    const indexer = { encode: (asked) => (calls++ % 2 === 0 ? encode(asked) : unused()) };
    const log = { warn() {} };
    const options = { indexer, contextFingerprint: 'f', hidden: 1_024, overlayBudgetMs: 60_000, log };
    const cache = new Overlays(options, BOUND);
    const lines = (i) => Array.from({ length: 400 }, (_, line) => `value_${i}_${line} = compute(${line}, ${i})`).join('\n');
    for (let i = 0; i < 1_500; i++) {
      const overlay = await cache.of(`tenant${i % TENANTS}`, [{ path: `f${i}.py`, text: lines(i) }], never);
      await cache.vectorsOf(`tenant${i % TENANTS}`, overlay, overlay.chunks.slice(0, 64), never);
    }
    return cache;
  },

  /** Prompts of 16,384 characters. */
  async recentPrompts() {
    const cache = new RecentPrompts(BOUND);
    for (let i = 0; i < 2_560; i++) cache.seriesOf(`tenant${i % TENANTS}`, `client${i % 640}`, text(i, 16_384));
    return cache;
  },

  /** Streams of 2,000 prompt tokens and 64 output tokens with 5 alternatives each, which have come to their ends. */
  async streams() {
    const parts = { typedThrough: 'session', promptOrder: 'psm', format: { forms: [] }, lingerMs: 0 };
    const cache = new TypedThrough(parts, BOUND);
    const request = completionBody.parse({ prompt: 'x', max_tokens: 64, logprobs: 5, temperature: 0 });
    const soft = { positions: new Int32Array(0), vectors: new Float32Array(0) };
    for (let i = 0; i < 3_200; i++) {
      // Eight prompts that begin alike, as the keystrokes of one file do.
      const ids = Int32Array.from({ length: 2_000 }, (_, at) => (at < 16 ? Math.floor(i / 8) : i + at));
      const top = (id) => Array.from({ length: 5 }, (_, t) => ({ id: id + t, logprob: -t }));
      const tokens = Array.from({ length: 64 }, (_, id) => ({ id, logprob: -1, top: top(id) }));
      const task = { request, scope: { tenant: `tenant${i % TENANTS}` }, prompt: { ids, soft } };
      cache.open({ ...task, samplings: [{ ...request.sampling, stopTokenIds: [] }] }, tokens);
    }
    return cache;
  },

  /** Rows of 4 KiB. */
  async rows() {
    const content = (id) => ({ text: text(id, 2_048), vector: new Float32Array(512) });
    const cache = withRowCache(store({ contents: async (_, __, ids) => ids.map(content) }), BOUND);
    for (let i = 0; i < 20_480; i += 64) {
      await cache.contents(
        repoOf(i / 64),
        FINGERPRINT,
        Array.from({ length: 64 }, (_, j) => idOf(i + j)),
      );
    }
    return cache;
  },

  /** Sessions with a prompt of 1,000 tokens, and ten chunks with a vector of 1,000 values. */
  async sessions() {
    const sessions = new Sessions(BOUND);
    for (let i = 0; i < 1_600; i++) {
      const key = `tenant${i % TENANTS}:${i}`;
      const vectors = { positions: new Int32Array(0), vectors: new Float32Array(0) };
      sessions.servedBy(key, '127.0.0.1:1', { ids: new Int32Array(1_000), soft: vectors });
      const chunk = (c) => ({ id: idOf(c), path: 'a.py', text: text(i, 200), vector: new Float32Array(1_000) });
      sessions.settle(key, 'k', { indexVersion: '1', chunks: Array.from({ length: 10 }, (_, c) => chunk(c)) });
    }
    return sessions;
  },

  /** Words of 128 characters, of which hardly two begin with the same token. */
  async words() {
    const json = await readFile(new URL('../../models/tiny-coder/tokenizer.json', import.meta.url), 'utf8');
    const tokenizer = new Tokenizer(JSON.parse(json));
    let state = 1;
    const letter = () => {
      state = (state * 48_271) % 0x7fff_ffff;
      return String.fromCharCode(97 + (state % 26));
    };
    for (let i = 0; i < 120_000; i++) tokenizer.encode(Array.from({ length: 120 }, letter).join(''));
    return tokenizer;
  },

  /** Rows that were logged, with the longest names that there are. */
  async leftOutRows() {
    const report = leftOutReporter({ warn: () => {} });
    for (let i = 0; i < 102_400; i++) {
      report(`tenant:${text(i, 200).replaceAll(' ', '.')}`, { id: idOf(i), reason: 'damaged', why: text(i, 200) });
    }
    return report;
  },

  /** Completions of which editors have reported everything. */
  async acceptance() {
    const acceptance = new Acceptance(BOUND);
    for (let i = 0; i < 163_840; i++) {
      const [tenant, id] = [`tenant${i % TENANTS}`, text(i, 130)];
      acceptance.answered(tenant, id, { context: undefined, arm: 'stable' });
      for (const event of ['view', 'dismiss']) acceptance.count(tenant, id, 0, event);
    }
    return acceptance;
  },

  /** Requests with as many calls as are kept of one, by pairs of workers of their own. */
  async flights() {
    const recorder = new FlightRecorder(BOUND);
    for (let i = 0; i < 8_192; i++) {
      const timeline = new Timeline();
      const flight = recorder.begin(timeline, { id: text(i, 128), route: '/v1/completions' });
      for (let call = 0; call < 64; call++) {
        const activity = timeline.begin('decode', { worker: `10.0.0.1:${call}`, source: text(i, 60) });
        activity.mark('joined', {});
        activity.end();
      }
      flight.end({ tenant: `tenant${i % TENANTS}`, repo: text(i, 200), timeline });
    }
    return recorder;
  },

  /** Tenants whose usual size of a row is remembered. */
  async shares() {
    const shared = withShares(store({ entries: async (_, ids, read) => (read.onBytes(9 * ids.length), []) }));
    for (let i = 0; i < 102_400; i++) await shared.entries(`t${text(i, 60).replaceAll(' ', '-')}:r`, [idOf(i)]);
    return shared;
  },
};

const fill = CACHES[process.argv[2]];
const inUse = () => {
  for (let i = 0; i < 3; i++) globalThis.gc();
  const { heapUsed, external, rss } = process.memoryUsage();
  return { bytes: heapUsed + external, rss };
};
await new Promise((resolve) => setImmediate(resolve));
const before = inUse();
const cache = await fill();
await new Promise((resolve) => setImmediate(resolve));
const after = inUse();
const figures = { keptBytes: after.bytes - before.bytes, rssBytes: after.rss - before.rss, kind: typeof cache };
process.stdout.write(JSON.stringify(figures));
process.exit(0);

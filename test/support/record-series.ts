/**
 * Records what a Prometheus would have of a real system while something is wrong with it, for the tests of the alert
 * rules: `npm run series` writes test/goldens/series/*.json anew, in an hour and a half. Each scene first runs for a
 * minute undisturbed. Nothing of it is a test, and nothing is asserted about time.
 *
 *   node dist/test/support/record-series.js [scene …]
 */
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { request } from 'node:https';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import { owner, writeKeys } from '../../bench/system/tenants.ts';
import { streamCompletion } from '../../services/client.ts';
import { bearer } from '../../services/http-call.ts';
import { exportBundle } from '../../services/lib/model/bundle/export-bundle.ts';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { GREEDY } from '../../services/lib/request/next-token.ts';
import { connectPrefill } from '../../services/lib/rpc/contract.ts';
import { samplingMessage } from '../../services/lib/rpc/messages.ts';
import type { RunningSystem, ServiceProcess } from '../../services/supervisor.ts';
import { TTFT_SECONDS } from './alert-rules.ts';
import { tarOfFiles } from './archives.ts';
import { makeAuthority } from './certificates.ts';
import { startRedis } from './redis.ts';
import { memberOf, startTestSystem, type TestSystem } from './system.ts';

export const SERIES = join(PACKAGE_ROOT, 'test/goldens/series');
const TINY_CODER = join(PACKAGE_ROOT, 'models/tiny-coder');
/** As a Prometheus may be set: the rules are evaluated every 30 s. */
const EVERY_MS = 5_000;
const CALM_MS = 60_000;
const DISTURBED_MS = 300_000;
/** Metrics that the rules read, and no others, so that the files stay small. */
const NAMES = [
  'arm_requests_total',
  'arm_time_to_first_token_seconds_count',
  'requests_inflight',
  'workers_usable',
  'store_circuit_open',
  'kv_staged_oldest_seconds',
  'requests_degraded_total',
  'certificate_not_after_seconds',
  'api_key_not_after_seconds',
];
/** Of the histogram's buckets, the one that the objective is about. */
const BUCKET = `arm_time_to_first_token_seconds_bucket(?=\\{le="${TTFT_SECONDS}")`;
const READ = new RegExp(`^(llavacode:(?:${[...NAMES, BUCKET].join('|')}))(?:\\{(.*)\\})? (\\S+)$`, 'gm');

/** One value per scrape of what was read, by `name{labels}`; null where there was none. */
type Series = Readonly<Record<string, readonly (number | null)[]>>;

interface Scene {
  readonly options?: Parameters<typeof startTestSystem>[2] & object;
  /** What is wrong from the second minute on. Ends with the signal. */
  disturb(system: TestSystem, over: AbortSignal): Promise<void>;
  readonly close?: () => Promise<unknown>;
  /** The key that every request carries; none where nobody needs one. */
  readonly apiKey?: string;
  /** How long, in ms; {@link DISTURBED_MS} where not given. */
  readonly disturbedMs?: number;
}

const of = ({ processes }: RunningSystem, role: string) => processes.filter(({ name }) => name.startsWith(role));
const until = (signal: AbortSignal) =>
  new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve(), { once: true }));

const SOURCE = { 'shop.py': 'class Basket:\n    def add(self, item):\n        self.items.append(item)\n' };
async function index({ url }: RunningSystem, apiKey: string | undefined): Promise<void> {
  const body = new Uint8Array(await tarOfFiles(SOURCE));
  const headers = { 'content-type': 'application/x-tar', ...bearer(apiKey) };
  const answer = await fetch(`${url}/v1/repos/shop`, { method: 'PUT', headers, body });
  if (!answer.ok) throw new Error(`the repository was not indexed: ${await answer.text()}`);
}

const SCENES: Readonly<Record<string, () => Promise<Scene>>> = {
  /** Nothing is wrong, for an hour. */
  soak: async () => ({ disturbedMs: 3_540_000, disturb: async (_, over) => until(over) }),

  /** The only decode worker is gone, and nobody starts it again. */
  'no-decode-worker': async () => ({
    options: { gateway: { targetTtftMs: 2_000, requestTimeoutMs: 10_000 } },
    disturb: async (system, over) => {
      await Promise.all(of(system, 'decode').map((worker) => worker.stop()));
      await until(over);
    },
  }),

  /** The prefill worker gets a sixteenth of its time. */
  'slow-prefill': async () => ({
    disturb: async (system, over) => {
      const [worker] = of(system, 'prefill') as [ServiceProcess];
      while (!over.aborted) {
        process.kill(worker.pid!, 'SIGSTOP');
        await sleep(6_000);
        process.kill(worker.pid!, 'SIGCONT');
        await sleep(400);
      }
    },
  }),

  /** Redis is away, and the gateway's certificate ends in two days. */
  'store-away': async () => {
    const redis = await startRedis();
    const authority = await makeAuthority();
    const { cert, key } = await authority.issue('127.0.0.1');
    return {
      options: {
        gateway: { store: redis.url, tlsCert: cert, tlsKey: key },
        indexer: { store: redis.url },
      },
      disturb: async (_, over) => {
        await redis.kill();
        await until(over);
      },
      close: async () => Promise.all([redis.stop(), authority.remove()]),
    };
  },

  /** The one API key ends in two days. */
  'key-expires': async () => {
    const dir = await mkdtemp(join(tmpdir(), 'llavacode-keys-'));
    const { apiKey, ...entry } = owner();
    const expires = new Date(Date.now() + 2 * 86_400_000).toISOString();
    const apiKeysFile = await writeKeys(dir, [{ ...entry, apiKey, expires }]);
    return {
      apiKey,
      options: { gateway: { apiKeysFile } },
      disturbedMs: 120_000,
      disturb: async (_, over) => until(over),
      close: () => rm(dir, { recursive: true, force: true }),
    };
  },

  /** A caller has prompts computed that no decoder ever takes; and the index is of another encoder. */
  'staged-and-stale': async () => {
    const dir = await mkdtemp(join(tmpdir(), 'llavacode-other-'));
    const model = join(dir, 'bundle');
    await exportBundle({ llm: TINY_CODER, to: model, precision: 'fp32', encoderMaxTokens: 64 });
    return {
      options: { prefillOnly: { kvLeaseMs: 900_000 }, indexer: { model } },
      disturb: async (system, over) => {
        const [worker] = of(system, 'prefill') as [ServiceProcess];
        const client = connectPrefill(worker.address, await memberOf(system));
        const call = {
          requestId: 'never-taken',
          fingerprint: system.bundle.manifest.fingerprint,
          tokenIds: Array.from({ length: 40 }, (_, i) => i + 1),
          choices: [samplingMessage(GREEDY)],
          readers: 1,
          promptLogprobs: -1,
          cacheSalt: 'recording',
        };
        try {
          for await (const _ of client.prefill(call, over));
        } catch {
          // The signal has ended it.
        } finally {
          client.close();
        }
      },
      close: () => rm(dir, { recursive: true, force: true }),
    };
  },
};

async function readMetrics(address: string, secure: boolean, apiKey: string | undefined): Promise<string> {
  const asked = { headers: bearer(apiKey), signal: AbortSignal.timeout(EVERY_MS) };
  if (!secure) return (await fetch(`http://${address}/metrics`, asked)).text();
  return new Promise((resolve, reject) => {
    const options = { rejectUnauthorized: false, agent: false, timeout: EVERY_MS } as const;
    request(`https://${address}/metrics`, options, (response) => text(response).then(resolve, reject))
      .on('error', reject)
      .end();
  });
}

/** Completions in a row, with context, until the signal aborts. Failures are what is to be recorded. */
async function traffic({ url }: RunningSystem, apiKey: string | undefined, over: AbortSignal): Promise<void> {
  process.env['NODE_TLS_REJECT_UNAUTHORIZED'] = '0';
  for (let i = 0; !over.aborted; i++) {
    const body = {
      prompt: `# order ${i}\nbasket = Basket()\nbasket.`,
      max_tokens: 8,
      temperature: 0,
      rag: { repo: 'shop', mode: 'compressed' as const, top_k: 2 },
    };
    const signal = AbortSignal.any([over, AbortSignal.timeout(20_000)]);
    const done = await streamCompletion(url, body, signal, { apiKey }).catch((error: Error) => error.message);
    if (i === 0) process.stdout.write(`${JSON.stringify(typeof done === 'string' ? done : done.rag)}\n`);
    await sleep(1_000, undefined, { signal: over }).catch(() => {});
  }
}

/**
 * Values as promtool's tests take them. A run of equal ones takes little room: `0+0x59 1` is sixty scrapes at 0, and
 * one at 1; `_x2` is two scrapes without a value.
 */
function notation(values: readonly (number | null)[]): string {
  const runs: { readonly value: number | null; times: number }[] = [];
  for (const value of values) {
    const last = runs.at(-1);
    if (last && last.value === value) last.times++;
    else runs.push({ value, times: 1 });
  }
  return runs
    .map(({ value, times }) => (value === null ? `_x${times}` : times === 1 ? `${value}` : `${value}+0x${times - 1}`))
    .join(' ');
}

/** The file of a scene: one series per line. */
async function write(scene: string, series: Series): Promise<void> {
  const lines = Object.entries(series).map(
    ([key, values]) => `    ${JSON.stringify(key)}: ${JSON.stringify(notation(values))}`,
  );
  const head = [
    `  "scene": ${JSON.stringify(scene)},`,
    `  "everySeconds": ${EVERY_MS / 1000},`,
    `  "scrapes": ${Math.max(...Object.values(series).map(({ length }) => length))},`,
  ];
  const whole = ['{', ...head, '  "series": {', lines.sort().join(',\n'), '  }', '}', ''];
  await writeFile(join(SERIES, `${scene}.json`), whole.join('\n'));
}

async function record(scene: string): Promise<Series> {
  const { options, disturb, close, apiKey, disturbedMs = DISTURBED_MS } = await SCENES[scene]!();
  const dir = await mkdtemp(join(tmpdir(), 'llavacode-series-'));
  const store = `lmdb:${join(dir, 'store')}`;
  const system = await startTestSystem(
    TINY_CODER,
    { slots: 4, capacity: 1024 },
    { ...options, gateway: { store, ...options?.gateway }, indexer: { store, ...options?.indexer } },
  );
  const series: Record<string, (number | null)[]> = {};
  const over = new AbortController();
  try {
    const secure = system.url.startsWith('https');
    if (secure) process.env['NODE_TLS_REJECT_UNAUTHORIZED'] = '0';
    await index(system, apiKey);
    const client = [1, 2, 3].map(() => traffic(system, apiKey, over.signal));
    const startMs = performance.now();
    const startDay = Math.floor(Date.now() / 1000);
    let disturbing: Promise<void> | undefined;
    for (let scrape = 0; scrape * EVERY_MS <= CALM_MS + disturbedMs; scrape++) {
      await sleep(Math.max(0, startMs + scrape * EVERY_MS - performance.now()));
      if (scrape * EVERY_MS >= CALM_MS) disturbing ??= disturb(system, over.signal);
      for (const { name, metricsAddress } of system.processes) {
        const read = await readMetrics(metricsAddress, secure && name.startsWith('gateway'), apiKey).catch(() => '');
        for (const [, metric, labels = '', value] of read.matchAll(READ)) {
          // Times of the day are counted from the beginning of the recording, as the tests' clock is.
          const shown = Number(value) - (metric!.endsWith('_not_after_seconds') ? startDay : 0);
          const key = `${metric}{${[labels, `instance="${name}"`].filter(Boolean).join(',')}}`;
          const values = series[key] ?? [];
          series[key] = values;
          while (values.length < scrape) values.push(null);
          values.push(Number(shown.toFixed(3)));
        }
      }
      process.stdout.write(`\r${scene}: ${scrape}`);
    }
    over.abort();
    await Promise.all([disturbing, ...client]);
  } finally {
    over.abort();
    await system.close();
    await close?.();
    await rm(dir, { recursive: true, force: true });
  }
  return series;
}

const asked = process.argv.slice(2);
await mkdir(SERIES, { recursive: true });
for (const scene of asked.length > 0 ? asked : Object.keys(SCENES)) await write(scene, await record(scene));
process.exit(0);

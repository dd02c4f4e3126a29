/**
 * Every setting of every service, in one table: its flag (`--kebab-case`), its variable (`LLAVACODE_SNAKE_CASE`), type,
 * default and meaning. A process reads its settings once, into one frozen value; all problems are reported at once.
 */
import { existsSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { z } from 'zod';
import { ServingError } from './errors.ts';

/** A whole number, or its decimal digits; nothing that JavaScript would kindly coerce ('' and true are not 0 and 1). */
const whole = (min: number, max = Number.MAX_SAFE_INTEGER) => {
  const error = `must be a whole number${max === Number.MAX_SAFE_INTEGER ? ` >= ${min}` : ` from ${min} to ${max}`}`;
  const digits = (value: unknown) => (typeof value === 'string' && /^-?\d+$/.test(value) ? Number(value) : value);
  return z.preprocess(digits, z.int({ error }).min(min, { error }).max(max, { error }));
};
/** Milliseconds; longer ones would make Node's timers fire at once. */
const milliseconds = (min: number) => whole(min, 2 ** 31 - 1);
const flag = z.union([z.boolean(), z.stringbool()], { error: 'must be true or false' });
const ADDRESS = /^(?:[^\s:]+|\[[0-9a-fA-F:]+\]):(\d{1,5})$/;
const addresses = z
  .string()
  .transform((list) => list.split(',').map((item) => item.trim()))
  .refine(
    (list) =>
      list.every((item) => {
        const port = Number(ADDRESS.exec(item)?.[1]);
        return port >= 1 && port <= 65535;
      }),
    'must be host:port[,host:port…]',
  )
  .readonly();

const REDIS = /^rediss?(\+(sentinel|cluster))?:\/\/.+/;
/** Where workers are: given addresses and DNS names, or one registry. */
const workers = z
  .string()
  .transform((list) => (REDIS.test(list) ? [list] : list.split(',').map((item) => item.trim())))
  .refine(
    (list) => list.every((item) => REDIS.test(item) || addresses.safeParse(item.replace(/^dns:/, '')).success),
    'must be host:port, dns:name:port (several with commas) or redis://…',
  )
  .readonly();

const file = z.string().default('');

const address = z
  .string()
  .default('')
  .refine((text) => text === '' || (!text.includes(',') && addresses.safeParse(text).success), 'must be host:port');

export const SETTINGS = {
  // Where to listen.
  host: z.string().min(1).default('127.0.0.1').describe('address to listen on'),
  port: whole(0, 65535).default(8000).describe('port to listen on; 0 takes a free one'),
  advertise: address.describe(
    "host:port under which others reach a worker; where it listens when empty, by this machine's first address if it listens on all",
  ),
  metricsHost: z
    .string()
    .min(1)
    .default('127.0.0.1')
    .describe("address of a worker's /metrics, /livez and /readyz, which ask nobody who they are"),
  metricsPort: whole(0, 65535)
    .default(0)
    .describe("port of a worker's /metrics, /livez and /readyz; 0 takes a free one"),
  // What to serve.
  model: z.string().min(1).describe('model bundle (see llavacode export)'),
  servedName: z.string().default('').describe("name of the model in the API; the bundle's own when empty"),
  promptFormat: z
    .enum(['auto', 'qwen', 'starcoder', 'deepseek', 'prefix-only'])
    .default('auto')
    .describe("how prompts are put together; auto goes by the tokenizer's tokens"),
  store: z
    .string()
    .regex(
      /^(rediss?(\+sentinel|\+cluster)?:\/\/|lmdb:).+/,
      'must be redis://…, redis+sentinel://…, redis+cluster://… (rediss… for TLS) or lmdb:DIR',
    )
    .default('lmdb:.llavacode/store')
    .describe('where the index lies: redis://…, redis+sentinel://…, redis+cluster://… or lmdb:DIR'),
  prefillWorkers: workers.describe(
    'prefill workers: host:port[,…]; dns:name:port for all addresses of a name; redis://… for a registry',
  ),
  decodeWorkers: workers.describe('decode workers, named in the same ways'),
  registry: z
    .string()
    .regex(/^($|rediss?(\+(sentinel|cluster))?:\/\/.+)/, 'must be redis://…')
    .default('')
    .describe('redis://… where a worker writes its address for gateways to find; none when empty'),
  indexer: address.describe('address of the indexer that PUT and DELETE /v1/repos go to, host:port; none when empty'),
  apiKeysFile: z
    .string()
    .default('')
    .describe('JSON file of the API keys that requests need (see deploy/SECURITY.md); no key is needed when empty'),
  // Who may speak to whom.
  insecureListen: flag
    .default(false)
    .describe('listen beyond this machine even without API keys (gateway) or --rpc-cert (other services)'),
  tlsCert: file.describe("PEM file of the gateway's certificate, its chain included; plain HTTP when empty"),
  tlsKey: file.describe('PEM file of its key'),
  rpcCert: file.describe('PEM file of the certificate, for the name llavacode, that this service shows to the others'),
  rpcKey: file.describe('PEM file of its key'),
  rpcCa: file.describe('PEM file of the private authority that signs these certificates and nothing else'),
  // The engine.
  provider: z.enum(['auto', 'cpu', 'cuda']).default('auto').describe('where to compute: auto, cpu or cuda'),
  threads: whole(1, 1024).default(availableParallelism()).describe('threads of the engine'),
  spin: flag.default(false).describe('let idle engine threads spin: faster where the cores are not shared'),
  cpus: z
    .string()
    .default('')
    .refine((text) => text === '' || /^\d+(-\d+)?(,\d+(-\d+)?)*$/.test(text), 'must be cores like 0-3,8')
    .describe('cores that the process keeps to, like 0-3,8 (Linux); any when empty'),
  prepacked: z
    .string()
    .default('')
    .describe(
      "folder for weights in the form that this CPU computes with, shared by the machine's processes; within the bundle when empty, none when off",
    ),
  kvWire: z
    .enum(['float32', 'float16', 'int8'])
    .default('float32')
    .describe(
      'how KV caches travel to this worker: float32 is exact, float16 half and int8 about a quarter of the bytes',
    ),
  slots: whole(1, 4096).default(4).describe('KV slots: sequences held at once'),
  capacity: whole(16, 1_000_000).default(4096).describe('tokens that one KV slot holds, prompt and output together'),
  prefillChunkTokens: whole(1, 65536).default(512).describe('tokens of one prompt chunk'),
  sharedChunkTokens: whole(1, 65536)
    .default(128)
    .describe(
      'tokens of one prompt chunk while sequences decode in the same process: what one of their tokens waits for',
    ),
  queueOrder: z
    .enum(['fifo', 'shortest-first'])
    .default('fifo')
    .describe('which prompt is next; shortest first lets waiting count as 500 tokens a second'),
  promptOrder: z
    .enum(['psm', 'spm'])
    .default('psm')
    .describe(
      'fill-in-the-middle with what is after the cursor last (psm) or first (spm: keeps more of the KV between keystrokes, for models trained with it)',
    ),
  localPrefill: z
    .enum(['auto', 'always', 'never'])
    .default('auto')
    .describe('whether a prompt is computed where it is decoded, if a worker there can do both'),
  localPrefillTokens: whole(0)
    .default(256)
    .describe('longest prompt that auto computes where it is decoded, in tokens'),
  // Bounds.
  queueTokens: whole(1).default(65_536).describe('prompt tokens that may wait in a prefill worker'),
  queueSequences: whole(0).default(64).describe('sequences that may wait for a slot in a decode worker'),
  maxInflight: whole(1)
    .default(256)
    .describe('requests served at once; a tenant with less than its share is let in beyond, to twice as many'),
  bodyLimitBytes: whole(1024)
    .default(4 * 1024 * 1024)
    .describe('largest request body, in bytes'),
  maxConnections: whole(1).default(4096).describe('connections that the gateway holds at once; more are closed'),
  receiveTimeoutMs: milliseconds(1)
    .default(10_000)
    .describe('within this a client must have sent the headers, and then the body, of a request, in ms'),
  uploadTimeoutMs: milliseconds(1)
    .default(600_000)
    .describe(
      'within this an upload of a repository must have come, and in every such time something be heard of its indexing, in ms',
    ),
  requestTimeoutMs: milliseconds(1).default(60_000).describe('deadline of one request, in ms'),
  targetTtftMs: milliseconds(1)
    .default(10_000)
    .describe('requests that could not have their first token within this time are refused, in ms'),
  tenantWeights: z
    .string()
    .regex(/^([\w-]+=[1-9]\d{0,5}(,[\w-]+=[1-9]\d{0,5})*)?$/, 'must be tenant=weight[,…], weights from 1 on')
    .default('')
    .describe('shares of tenants under load, tenant=weight[,…]; 1 for those that are not named'),
  maxReplays: whole(0)
    .default(3)
    .describe('how often a part of a request is done again by other workers when its worker is lost'),
  stallTimeoutMs: milliseconds(1)
    .default(10_000)
    .describe('a worker that neither answers nor sends a token for so long is taken for lost, in ms'),
  connectTimeoutMs: milliseconds(1).default(10_000).describe('deadline for reaching a worker or the indexer, in ms'),
  kvLeaseMs: milliseconds(1).default(30_000).describe('how long a staged KV cache waits for its decoder, in ms'),
  drainTimeoutMs: milliseconds(0).default(30_000).describe('how long running requests may finish after SIGTERM, in ms'),
  // Retrieval.
  retrievalBudgetMs: milliseconds(1)
    .default(20)
    .describe('what a search by identifiers may cost a completion, in ms: two reads of the store, some ms of search'),
  denseBudgetMs: milliseconds(1)
    .default(250)
    .describe("the same for dense and fused, which encode the query on the gateway's CPU first, in ms"),
  chunkLines: whole(1, 1000).default(10).describe('lines of one chunk'),
  chunkStride: whole(1, 1000).default(5).describe('lines between the starts of two chunks'),
  retriever: z
    .enum(['jaccard', 'bm25', 'dense', 'fused', 'none'])
    .default('jaccard')
    .describe('what searches an index where a request does not say; dense and fused store embeddings too'),
  queryLines: whole(1, 1000)
    .default(10)
    .describe('non-blank lines before the cursor, and half as many after it, that are the query'),
  maxFileBytes: whole(1)
    .default(512 * 1024)
    .describe('files larger than this are not indexed, in bytes'),
  maxUploadBytes: whole(1024)
    .default(256 * 1024 * 1024)
    .describe('largest upload of a repository, in bytes as it is sent'),
  maxRepoBytes: whole(1024)
    .default(1024 * 1024 * 1024)
    .describe('most bytes that an uploaded repository may unpack to'),
  maxRepoFiles: whole(1).default(200_000).describe('most files and folders that an uploaded repository may have'),
  rowCacheBytes: whole(0)
    .default(64 * 1024 * 1024)
    .describe('rows of chunks that the gateway keeps in memory, in bytes'),
  indexCacheBytes: whole(1)
    .default(2 * 1024 * 1024 * 1024)
    .describe(
      'indexes of repositories that the gateway keeps in memory, in bytes; one that takes more is not searched',
    ),
  // Output.
  logLevel: z
    .enum(['fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent'])
    .default('info')
    .describe('log level'),
  logSamplePercent: whole(0, 100)
    .default(0)
    .describe('percentage of completions whose text is logged with every letter and digit blotted out'),
} as const;

export type Setting = keyof typeof SETTINGS;
export type Config<K extends Setting> = Readonly<{ [P in K]: z.output<(typeof SETTINGS)[P]> }>;

export const envName = (setting: string) => `LLAVACODE_${setting.replace(/[A-Z]/g, (c) => `_${c}`).toUpperCase()}`;
export const flagName = (setting: string) => `--${setting.replace(/[A-Z]/g, (c) => `-${c.toLowerCase()}`)}`;

/** A value as a message may show it: without what a URL carries before its host and in its query, however it is misspelt. */
const shown = (value: unknown) =>
  JSON.stringify(typeof value === 'string' ? value.replace(/.*@/s, '***@').replace(/\?.*/s, '?***') : value);

/**
 * The settings that one process wants, from flags, then `LLAVACODE_*`, then defaults; frozen. An empty variable is one
 * that is not set, as docker compose passes them on.
 * @throws ServingError config_invalid, listing every problem: bad values, missing ones, and variables under our prefix
 *   that name no setting.
 */
export function loadConfig<K extends Setting>(
  wanted: readonly K[],
  flags: Readonly<Record<string, unknown>> = {},
  env: NodeJS.ProcessEnv = process.env,
): Config<K> {
  const problems: string[] = [];
  const known = new Set(Object.keys(SETTINGS).map(envName));
  for (const name of Object.keys(env)) {
    if (name.startsWith('LLAVACODE_') && !known.has(name)) problems.push(`${name}: no such setting`);
  }
  const values: Record<string, unknown> = {};
  for (const key of wanted) {
    const given = flags[key] ?? (env[envName(key)] || undefined);
    const parsed = SETTINGS[key].safeParse(given);
    if (parsed.success) values[key] = parsed.data;
    else {
      const why = given === undefined ? 'is required' : parsed.error.issues.map((i) => i.message).join('; ');
      const value = given === undefined ? '' : ` = ${shown(given)}`;
      problems.push(`${flagName(key)} (${envName(key)})${value}: ${why}`);
    }
  }
  const { chunkLines, chunkStride } = values;
  if (Number(chunkStride) > Number(chunkLines)) {
    problems.push(
      `--chunk-stride = ${chunkStride}: of chunks of ${chunkLines} lines (--chunk-lines) it would lose some`,
    );
  }
  if (problems.length > 0)
    throw new ServingError('config_invalid', `invalid configuration:\n  ${problems.join('\n  ')}`);
  return Object.freeze(values) as Config<K>;
}

/** The folder of the package: where protos/ and models/ lie, from sources and from dist/ alike. */
export const PACKAGE_ROOT = (() => {
  const start = dirname(fileURLToPath(import.meta.url));
  let dir = start;
  while (!existsSync(join(dir, 'package.json'))) {
    if (dir === dirname(dir)) throw new ServingError('internal', `no package.json above ${start}`);
    dir = dirname(dir);
  }
  return dir;
})();

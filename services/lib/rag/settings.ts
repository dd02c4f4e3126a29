/** The settings of an index: where it lies, how files become chunks, and what searches it. */
import { z } from 'zod';
import { flag, milliseconds, whole } from '../process/setting-types.ts';
import { isRedisUrl } from '../redis/url.ts';
import { DEFAULT_RETRIEVER, RETRIEVERS } from './retriever-name.ts';

const REDIS_FORMS = 'redis://…, redis+sentinel://…, redis+cluster://… (rediss… for TLS)';

export const STORE_SETTINGS = {
  store: z
    .string()
    .refine((url) => isRedisUrl(url) || /^lmdb:./.test(url), `must be ${REDIS_FORMS} or lmdb:DIR`)
    .default('lmdb:.llavacode/store')
    .describe(`where the index lies: ${REDIS_FORMS} or lmdb:DIR`),
};

/** The largest repository that is taken over HTTP: the gateway stops an upload there, the indexer checks again. */
export const UPLOAD_SETTINGS = {
  maxUploadBytes: whole(1024)
    .default(256 * 1024 * 1024)
    .describe('largest upload of a repository, in bytes as it is sent, after its content-encoding is undone'),
};

export const INDEXING_SETTINGS = {
  ...STORE_SETTINGS,
  chunkLines: whole(1, 1000).default(10).describe('lines of one chunk'),
  chunkStride: whole(1, 1000).default(5).describe('lines between the starts of two chunks'),
  retriever: z
    .enum(RETRIEVERS)
    .default(DEFAULT_RETRIEVER)
    .describe(`retriever where a request names none: ${RETRIEVERS.join(', ')}; dense and fused store embeddings too`),
  fileVectors: flag
    .default(false)
    .describe(
      'keep a vector for each file too, the projected mean of its chunks, which rag.file_tokens puts into prompts: a file ' +
        'that changes is encoded whole',
    ),
  maxFileBytes: whole(1)
    .default(512 * 1024)
    .describe('files larger than this are not indexed, in bytes'),
  defaultExcludes: flag
    .default(true)
    .describe(
      'leave out what nobody here wrote by hand: virtual environments, site-packages, generated and minified files, ' +
        'lock files, outputs of notebooks',
    ),
};

/** @returns what is wrong: with a stride that is longer than a chunk some lines would be in no chunk. */
export function strideRule({ chunkLines, chunkStride }: Readonly<Record<string, unknown>>): string | undefined {
  if (!(Number(chunkStride) > Number(chunkLines))) return undefined;
  return `--chunk-stride = ${chunkStride}: must be at most --chunk-lines = ${chunkLines}, else some lines would be in no chunk`;
}

/** The settings of searching an index, for those who serve completions. */
export const SEARCH_SETTINGS = {
  retrievalBudgetMs: milliseconds(1)
    .default(100)
    .describe(
      'time that a search by identifiers may take of a completion, in ms: two reads of the store and the search',
    ),
  denseBudgetMs: milliseconds(1)
    .default(250)
    .describe(
      "time that a dense or fused search may take of a completion, in ms: it first encodes the query on the gateway's CPU",
    ),
  overlayBudgetMs: milliseconds(0)
    .default(50)
    .describe(
      'time that a completion waits until parts of the files that its editor holds are encoded, in ms; what is not ' +
        'encoded by then stands in the prompt as text',
    ),
  withoutProjector: z
    .enum(['text', 'off'])
    .default('text')
    .describe(
      'what rag.mode compressed and mixed get from a model without encoder and projector: text (the chunks as text) or off (no context)',
    ),
  queryLines: whole(1, 1000)
    .default(10)
    .describe('non-blank lines before the cursor, and half as many after it, that are the query'),
  rowCacheBytes: whole(0)
    .default(64 * 1024 * 1024)
    .describe('memory for rows of chunks in the gateway, in bytes'),
  indexCacheBytes: whole(1)
    .default(2 * 1024 * 1024 * 1024)
    .describe('memory for indexes of repositories in the gateway, in bytes; an index that takes more is not searched'),
};

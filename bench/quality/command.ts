/** The command `llavacode evaluate`: its options, and the names of what they choose from. */
import { RAG_MODES } from '../../services/gateway/request.ts';
import { count } from '../../services/lib/process/count-argument.ts';
import { RETRIEVERS } from '../../services/lib/rag/retriever-name.ts';
import { PROMPT_ORDERS } from '../../services/lib/text/prompt-format.ts';
import type { CodeBleuVariant } from '../../training/metrics/code-bleu.ts';
import type { ScoredLanguage } from '../../training/metrics/keywords.ts';
import {
  list,
  oneOf,
  option,
  optional,
  type ParsedOptions,
  required,
  SYSTEM_OPTIONS,
  text,
  whole,
  words,
} from '../options.ts';

/** Benchmarks' formats, by the names of those who publish them. */
export const FORMATS = ['repoeval', 'cceval', 'longeval', 'authors', 'llavacode'] as const;
export type Format = (typeof FORMATS)[number];

/** Rewriters of context as text, which compete with soft tokens at the same length. */
export const REWRITERS = ['pruned', 'summary', 'typed', 'zip', 'given-pruned', 'given-summary'] as const;
export type Rewriter = (typeof REWRITERS)[number];
/** Compressed context with soft tokens of files before those of chunks. */
export const WITH_FILES = 'compressed-files';
/** What stands in a prompt: nothing, or context in one of the modes of the server, or rewritten. */
const ARMS = [...RAG_MODES.toReversed(), WITH_FILES, ...REWRITERS] as const;
export type Arm = (typeof ARMS)[number];

const CONTEXT_SOURCES = ['file', 'index'] as const;

/** What can decide whether an arm is better than another. */
const GATE_MEASURES = ['ce', 'es', 'em'] as const;
export type GateMeasure = (typeof GATE_MEASURES)[number];

const VARIANTS = ['codexglue', 'pip'] as const satisfies readonly CodeBleuVariant[];
const LANGUAGES = ['auto', 'python', 'java', 'javascript', 'typescript', 'csharp'] as const;
const named: readonly (ScoredLanguage | 'auto')[] = LANGUAGES;

const { models, precision, prefillPrecision, cores, slots, capacity, timeoutMs } = SYSTEM_OPTIONS;

export const EVALUATE_COMMAND = {
  name: 'evaluate',
  description: 'say how good completions are, without context, with text and with soft tokens, on a benchmark',
  options: {
    benchmark: required('<path>', 'file of JSON lines, gzipped or not, or a folder of llavacode dataset', text),
    format: oneOf('<name>', 'format of the benchmark; auto: told by its first line', ['auto', ...FORMATS], 'auto'),
    language: oneOf('<name>', 'language of the code; auto: by the endings of file names', named, 'auto'),
    arms: option('<list>', `arms to compare: ${ARMS.join(', ')}`, words(ARMS), ['off', 'text', 'compressed']),
    context: oneOf(
      '<source>',
      "chunks of the benchmark's file, or an index of --repositories",
      CONTEXT_SOURCES,
      'file',
    ),
    repositories: optional('<dir>', "folder with a folder for each of the benchmark's repositories", text),
    retrievers: option('<list>', `retrievers to compare: ${RETRIEVERS.join(', ')}`, words(RETRIEVERS), ['jaccard']),
    samples: optional('<n>', 'samples to take, evenly from the whole benchmark; all when not given', count),
    maxTokens: option('<n>', 'the most tokens of a completion', count, 50),
    promptTokens: option('<n>', 'the most tokens of the code around the gap and its frame', count, 2000),
    textTokens: option('<n>', 'the most tokens of context as text', count, 512),
    textChunks: optional('<n>', 'chunks that stand as text in the arm mixed; by their scores when not given', whole),
    rewriteTokens: option('<n>', 'the most tokens of rewritten context', count, 10),
    topK: option('<n>', 'chunks of a prompt', count, 10),
    fileTokens: option('<n>', `the most files with a soft token of their own, for the arm ${WITH_FILES}`, count, 3),
    beside: option('<list>', 'artifacts of earlier runs on the same samples, for the ladder of this one', list, []),
    codeBleu: oneOf('<variant>', 'which CodeBLEU: of CodeXGLUE or of the package on PyPI', VARIANTS, 'codexglue'),
    requireBetterThan: optional(
      '<arm>',
      'end with exit code 1 unless --gate-arm is shown to be better than this arm',
      oneArm,
    ),
    gateArm: option('<arm>', 'the arm that must be better', oneArm, 'compressed'),
    gateBy: oneOf(
      '<measure>',
      'what decides whether it is better: ce (cross-entropy), es (edit similarity) or em (exact match)',
      GATE_MEASURES,
      'ce',
    ),
    summarizer: optional('<url>', 'OpenAI-compatible server whose model summarises chunks, for the arm summary', text),
    summarizerModel: optional('<name>', 'its model; the first that it names when not given', text),
    summarizerKeyFile: optional('<file>', 'file with its API key', text),
    promptOrder: oneOf('<order>', 'see --prompt-order of the gateway; that of --url if given', PROMPT_ORDERS, 'psm'),
    url: optional('<url>', 'a running system with an indexer, that serves --models; started when not given', text),
    apiKeyFile: optional('<file>', 'file with the key for a system with --api-keys-file', text),
    models,
    precision,
    prefillPrecision,
    cores,
    slots,
    capacity,
    timeoutMs,
  },
};
export type EvaluateOptions = ParsedOptions<typeof EVALUATE_COMMAND>;

function oneArm(value: string): Arm {
  const [arm] = words(ARMS)(value);
  return arm!;
}

/**
 * Whether answers are the same with and without speculation, on many requests of every kind. Several are in flight at
 * once, so that sequences join others and are left alone again while drafts are verified. The system with speculation
 * is asked second: what is predicted is made of the answer that the other one gave.
 */
import { json } from 'node:stream/consumers';
import type { CompletionBody } from '../../services/client.ts';
import { sendRequest } from '../../services/http-call.ts';
import { runTogether } from '../../services/lib/async/task-group.ts';
import { isErrorCode, ServingError } from '../../services/lib/process/errors.ts';
import type { Tokenizer } from '../../services/lib/text/tokenizer.ts';
import type { PromptMaker } from '../system/prompts.ts';
import { type SpeculationOptions, TRACES, type TraceName } from './command.ts';
import { bodyOf, type Pair, predictionOf } from './measure.ts';
import { countedBetween, countsOf, type SourceCounts } from './sources.ts';

/** What requests ask for besides their prompt; they take turns. */
const KINDS = {
  'one choice': {},
  'four choices': { n: 4 },
  'the best of three': { best_of: 3 },
  penalties: { frequency_penalty: 0.6, presence_penalty: 0.3 },
  'logit bias': { logit_bias: { 11: 4, 12: -4, 220: 2 } },
  'stop strings': { stop: ['self.', '):', '\n\n'] },
  logprobs: { logprobs: 3 },
  'fewest tokens': { min_tokens: 8 },
  'top_k and top_p': { top_k: 20, top_p: 0.9 },
  'end of a block': { stop_at: 'block', language: 'python' },
} as const satisfies Readonly<Record<string, object>>;
type Kind = keyof typeof KINDS;
const KIND_NAMES = Object.keys(KINDS) as Kind[];

/** Differing answers that an artifact shows whole. */
const SHOWN = 10;
/** Requests after which what was found is saved: a run that is killed keeps it. */
const SAVED_EVERY = 500;

/** Requests of one kind at one temperature. */
interface KindCounts {
  readonly kind: Kind;
  readonly temperature: number;
  readonly requests: number;
  readonly choices: number;
  /** Tokens of all choices. */
  readonly tokens: number;
  /** Requests whose choices are the same, byte for byte. */
  readonly same: number;
}

/** A request whose answers differ. */
interface Difference {
  readonly request: number;
  readonly kind: Kind;
  readonly temperature: number;
  readonly trace: TraceName;
  /** The choices as JSON. */
  readonly plain: string;
  readonly speculative: string;
}

export interface IdentityResult {
  readonly kinds: readonly KindCounts[];
  readonly sources: readonly SourceCounts[];
  /** The first {@link SHOWN}. */
  readonly differences: readonly Difference[];
}

export type IdentitySettings = Pick<
  SpeculationOptions,
  'identity' | 'streams' | 'temperatures' | 'promptTokens' | 'outputTokens' | 'context' | 'seed' | 'timeoutMs'
>;

interface Choice {
  readonly text: string;
  readonly token_ids: readonly number[];
}

/** Kind, temperature and prediction of a request: all combinations come in turns. */
export function turnOf(request: number, temperatures: readonly number[]) {
  const [kinds, warmths] = [KIND_NAMES.length, temperatures.length];
  return {
    kind: KIND_NAMES[request % kinds]!,
    temperature: temperatures[Math.floor(request / kinds) % warmths]!,
    trace: TRACES[Math.floor(request / (kinds * warmths)) % TRACES.length]!,
  };
}

/**
 * Sends every request to both systems and compares their choices: text, token ids, log-probabilities, finish reasons.
 * @param onDone is told how many requests are done, and of how many the answers differ
 * @param save keeps what has been found so far
 * @throws ServingError with the code of a request that failed: nothing can be said of its answer.
 */
export async function measureIdentity(
  { plain, speculative }: Pair,
  prompts: Pick<PromptMaker, 'make' | 'blocks'>,
  tokenizer: Pick<Tokenizer, 'decode'>,
  options: IdentitySettings,
  onDone: (done: number, different: number) => void,
  save: (soFar: IdentityResult) => Promise<void>,
): Promise<IdentityResult> {
  const before = await countsOf(speculative, options.timeoutMs);
  const counts = new Map<string, KindCounts>();
  const differences: Difference[] = [];
  let [next, done, different] = [0, 0, 0];
  const soFar = async (): Promise<IdentityResult> => ({
    kinds: inOrder([...counts.values()]),
    sources: countedBetween(before, await countsOf(speculative, options.timeoutMs)),
    differences,
  });
  const compare = async (request: number, live: AbortSignal) => {
    const { kind, temperature, trace } = turnOf(request, options.temperatures);
    const { ignore_eos: _, ...body } = bodyOf(prompts, request, temperature, options);
    const asked = { ...body, ...KINDS[kind] };
    const signal = () => AbortSignal.any([live, AbortSignal.timeout(options.timeoutMs)]);
    const expected = await choicesOf(plain.url, asked, signal());
    const output = expected[0]!.token_ids;
    const other = prompts.blocks([request + 1], Math.max(1, output.length));
    const content = predictionOf(trace, output, other, tokenizer);
    const predicted = content === undefined ? {} : { prediction: { type: 'content', content } as const };
    const received = await choicesOf(speculative.url, { ...asked, ...predicted }, signal());
    const [a, b] = [expected, received].map((choices) => JSON.stringify(choices)) as [string, string];
    if (a !== b && ++different <= SHOWN) {
      differences.push({ request, kind, temperature, trace, plain: a, speculative: b });
    }
    const name = `${kind} ${temperature}`;
    const sofar = counts.get(name) ?? { kind, temperature, requests: 0, choices: 0, tokens: 0, same: 0 };
    counts.set(name, {
      ...sofar,
      requests: sofar.requests + 1,
      choices: sofar.choices + expected.length,
      tokens: sofar.tokens + expected.reduce((sum, { token_ids }) => sum + token_ids.length, 0),
      same: sofar.same + (a === b ? 1 : 0),
    });
    onDone(++done, different);
    if (done % SAVED_EVERY === 0) await save(await soFar());
  };
  const lane = async (live: AbortSignal) => {
    for (let request = next++; request < options.identity; request = next++) await compare(request, live);
  };
  await runTogether(new AbortController().signal, (live) => Array.from({ length: options.streams }, () => lane(live)));
  return soFar();
}

const inOrder = (kinds: readonly KindCounts[]): KindCounts[] =>
  kinds.toSorted((a, b) => KIND_NAMES.indexOf(a.kind) - KIND_NAMES.indexOf(b.kind) || a.temperature - b.temperature);

async function choicesOf(url: string, body: CompletionBody, signal: AbortSignal): Promise<readonly Choice[]> {
  const headers = { 'content-type': 'application/json' };
  const call = { method: 'POST', url: `${url}/v1/completions`, headers, body: JSON.stringify(body), signal } as const;
  const answer = (await json(await sendRequest(call))) as {
    readonly choices?: readonly Choice[];
    readonly error?: { readonly code: string; readonly message: string };
  };
  if (answer.choices !== undefined) return answer.choices;
  const { code = 'internal', message = 'the answer has neither choices nor an error' } = answer.error ?? {};
  throw new ServingError(isErrorCode(code) ? code : 'internal', message);
}

/** How many of all requests have the same answers. */
export function identicalOf({ kinds }: IdentityResult): { readonly requests: number; readonly same: number } {
  const sum = (of: (counts: KindCounts) => number) => kinds.reduce((total, counts) => total + of(counts), 0);
  return { requests: sum(({ requests }) => requests), same: sum(({ same }) => same) };
}

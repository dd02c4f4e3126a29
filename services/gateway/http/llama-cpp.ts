/**
 * The routes of llama.cpp's server: `/infill` and `/completion`, for llama.vim, llama.vscode and other clients, and
 * `/props`, `/slots`, `/tokenize` and `/detokenize`. `/health` is in probes.ts.
 */
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import { z } from 'zod';
import { inTurns } from '../../lib/async/turns.ts';
import { BUILD_INFO } from '../../lib/process/build-info.ts';
import { ServingError } from '../../lib/process/errors.ts';
import type { Tokenizer } from '../../lib/text/tokenizer.ts';
import type { AdmissionConfig } from '../admission/settings.ts';
import type { ChoiceDelta } from '../completion/choice.ts';
import { CHARACTERS_PER_TOKEN } from '../tenants/demand.ts';
import { type AnswerWords, sendLong } from './answer.ts';
import type { CompletionCall } from './completion-call.ts';
import { ignoringUnknown, type Translated } from './editor-body.ts';
import { addEditorRoute, type EditorParts } from './editor-route.ts';
import { LazyList } from './json.ts';
import { infillBody, type LlamaCppForm, llamaCppCompletionBody } from './llama-cpp-body.ts';
import { modelOrServed } from './models.ts';
import { Outlet } from './outlet.ts';
import type { HttpConfig } from './settings.ts';
import { SSE } from './sse.ts';

export interface LlamaCppParts
  extends EditorParts,
    Pick<HttpConfig, 'slotsRoute'>,
    Pick<AdmissionConfig, 'requestTimeoutMs'> {
  readonly tokenizer: Tokenizer;
  /** Slots of the decode workers. */
  readonly slots: () => { readonly total: number; readonly busy: number };
}

export function addLlamaCppRoutes(app: FastifyInstance, parts: LlamaCppParts): void {
  const { modelName } = parts;
  const words = (call: CompletionCall, form: LlamaCppForm) => llamaCppWords(call, form, modelName);
  // The one model is meant, as with llama.cpp, whatever a client calls it.
  const adapt = (request: Translated<LlamaCppForm>) => ({
    ...request,
    model: modelOrServed(request.model, modelName),
  });
  const route = { tag: 'llama.cpp', words, adapt };
  const infill = { url: '/infill', body: infillBody, summary: 'fills in the middle of a file' };
  const completion = { url: '/completion', body: llamaCppCompletionBody, summary: 'completes a prompt' };
  addEditorRoute(app, { ...route, ...infill }, parts);
  addEditorRoute(app, { ...route, ...completion }, parts);
  addServerRoutes(app, parts);
  addTokenRoutes(app, parts);
}

/** The words of llama.cpp: https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md */
function llamaCppWords({ request, record }: CompletionCall, form: LlamaCppForm, model: string): AnswerWords {
  /** Output tokens of each choice of a stream so far. */
  const predicted = new Map<number, number>();
  const indexOf = ({ prompt, choice }: ChoiceDelta) => prompt * request.n + choice;
  const tokens = (delta: ChoiceDelta) => (request.returnTokenIds ? delta.tokenIds : []);
  const end = (index: number, choice: ChoiceDelta, content: string, count: number) => {
    const { promptTokens, cachedTokens } = record.usage;
    const body = {
      index,
      content,
      tokens: tokens(choice),
      id_slot: -1,
      stop: true,
      model,
      tokens_predicted: count,
      tokens_evaluated: promptTokens,
      truncated: record.promptCut,
      stop_type: stopType(choice),
      stopping_word: choice.stopString ?? '',
      tokens_cached: cachedTokens,
      timings: timings(record, count),
    };
    return form.responseFields ? picked(body, form.responseFields) : body;
  };
  return {
    format: SSE,
    whole(choices) {
      const bodies = choices.map((choice, index) => end(index, choice, choice.text, choice.tokenIds.length));
      return bodies.length === 1 ? bodies[0]! : bodies;
    },
    part(delta, first) {
      const index = indexOf(delta);
      const count = (predicted.get(index) ?? 0) + delta.tokenIds.length;
      predicted.set(index, count);
      const { promptTokens, cachedTokens } = record.usage;
      const progress = {
        total: promptTokens,
        cache: cachedTokens,
        processed: promptTokens,
        time_ms: Math.round(record.prefillMs),
      };
      const head = { index, tokens_predicted: count, tokens_evaluated: promptTokens };
      const values: object[] = [];
      if (first && form.returnProgress) {
        values.push({ ...head, content: '', tokens: [], stop: false, prompt_progress: progress });
      }
      if (delta.text !== '') values.push({ ...head, content: delta.text, tokens: tokens(delta), stop: false });
      if (delta.finishReason !== null) values.push(end(index, { ...delta, tokenIds: [] }, '', count));
      return values;
    },
  };
}

function stopType({ finishReason, stopString }: ChoiceDelta): 'none' | 'limit' | 'word' | 'eos' {
  if (finishReason === null) return 'none';
  if (finishReason === 'length') return 'limit';
  return stopString === undefined ? 'eos' : 'word';
}

function timings({ usage, prefillMs, decodeMs }: CompletionCall['record'], predicted: number) {
  const computed = usage.promptTokens - usage.cachedTokens;
  const perSecond = (tokens: number, ms: number) => (ms > 0 ? (tokens / ms) * 1000 : 0);
  const each = (ms: number, tokens: number) => (tokens > 0 ? ms / tokens : 0);
  return {
    cache_n: usage.cachedTokens,
    prompt_n: computed,
    prompt_ms: prefillMs,
    prompt_per_token_ms: each(prefillMs, computed),
    prompt_per_second: perSecond(computed, prefillMs),
    predicted_n: predicted,
    predicted_ms: decodeMs,
    predicted_per_token_ms: each(decodeMs, predicted),
    predicted_per_second: perSecond(predicted, decodeMs),
  };
}

/** The named fields of a body, under their paths. One that there is not is left out. */
function picked(body: object, paths: readonly string[]): object {
  const valueAt = (path: string) =>
    path.split('/').reduce<unknown>((value, name) => {
      const isObject = typeof value === 'object' && value !== null;
      return isObject && Object.hasOwn(value, name) ? (value as Record<string, unknown>)[name] : undefined;
    }, body);
  const found = paths.map((path) => [path, valueAt(path)] as const).filter(([, value]) => value !== undefined);
  return Object.fromEntries(found);
}

/** What a server says of itself. */
function addServerRoutes(app: FastifyInstance, { modelName, capacity, slots, slotsRoute, tokenizer }: LlamaCppParts) {
  app.get('/props', { schema: { summary: 'the server and its model', tags: ['llama.cpp'] } }, async () => ({
    default_generation_settings: { n_ctx: capacity() ?? 0 },
    total_slots: slots().total,
    model_alias: modelName,
    model_path: modelName,
    modalities: { vision: false, audio: false },
    chat_template: tokenizer.chat.template ?? '',
    bos_token: tokenizer.chat.bosToken,
    eos_token: tokenizer.chat.eosToken,
    build_info: `llavacode-${BUILD_INFO.version}`,
  }));
  const summary = 'the slots of the decode workers, with --slots-route';
  app.get('/slots', { schema: { summary, tags: ['llama.cpp'] } }, async () => {
    if (!slotsRoute) throw new ServingError('not_found', 'this gateway does not tell of its slots (--slots-route)');
    const { total, busy } = slots();
    const n_ctx = capacity() ?? 0;
    return Array.from({ length: total }, (_, id) => ({ id, n_ctx, speculative: false, is_processing: id < busy }));
  });
}

/** UTF-16 units of a text to be tokenized, far more than a model holds. */
const MAX_CONTENT = 1 << 20;
const tokenizeFields = z.object({
  content: z.string().max(MAX_CONTENT),
  add_special: z.boolean().default(false).describe('whether the tokens come first that every prompt begins with'),
  parse_special: z.boolean().default(true).describe('whether names of special tokens are read as these tokens'),
  with_pieces: z.boolean().default(false).describe("whether each token's text is given, or its bytes"),
});
/** More ids than a body of the default limit can hold. */
const MAX_IDS = 4_000_000;
const detokenizeFields = z.object({
  tokens: z
    .custom<number[]>(
      (value) =>
        Array.isArray(value) && value.length <= MAX_IDS && value.every((id) => Number.isSafeInteger(id) && id >= 0),
      'must be an array of token ids',
    )
    .meta({ type: 'array', items: { type: 'integer', minimum: 0 } }),
});

function addTokenRoutes(app: FastifyInstance, parts: LlamaCppParts): void {
  const { tokenizer, slowReaderMs, requestTimeoutMs, quota } = parts;
  const tags = ['llama.cpp'];
  /** Sends what `make` makes, and charges the tenant for its tokens. @param about tokens that it has, about. */
  const answer = async (
    { identity }: FastifyRequest,
    reply: FastifyReply,
    about: number,
    make: () => Promise<{ body: object; tokens: number }>,
  ) => {
    const reservation = await quota.reserveReading(identity, about);
    let read = about;
    try {
      const { body, tokens } = await make();
      read = tokens;
      await send(body, reply);
    } finally {
      reservation.settle(read);
    }
  };
  const send = (body: object, reply: FastifyReply) => {
    const gone = new AbortController();
    reply.raw.once('close', () => gone.abort(new ServingError('client_gone', 'the client hung up')));
    const signal = AbortSignal.any([gone.signal, AbortSignal.timeout(requestTimeoutMs)]);
    return sendLong(body, reply, new Outlet(reply.raw, signal, slowReaderMs));
  };
  app.post<{ Body: z.output<typeof tokenizeFields> }>('/tokenize', {
    schema: { body: ignoringUnknown(tokenizeFields), summary: 'the tokens of a text', tags },
    handler: (request, reply) => {
      const { content, add_special, parse_special, with_pieces } = request.body;
      return answer(request, reply, Math.ceil(content.length / CHARACTERS_PER_TOKEN), async () => {
        const steps = tokenizer.headSteps(content, Infinity, parse_special ? 'as tokens' : 'as text');
        const ids = [...(add_special ? tokenizer.leadingIds : []), ...(await inTurns(steps))];
        const tokens = new LazyList<unknown>(function* () {
          for (const id of ids) yield with_pieces ? { id, piece: pieceOf(tokenizer.bytes(id)) } : id;
        });
        return { body: { tokens }, tokens: ids.length };
      });
    },
  });
  app.post<{ Body: z.output<typeof detokenizeFields> }>('/detokenize', {
    schema: { body: ignoringUnknown(detokenizeFields), summary: 'the text of tokens', tags },
    handler: async (request, reply) => {
      const { tokens } = request.body;
      const unknown = tokens.find((id) => id >= tokenizer.vocabSize);
      if (unknown !== undefined) {
        const message = `tokens: ${unknown} is not in this model's vocabulary of ${tokenizer.vocabSize} tokens`;
        throw new ServingError('invalid_request', message, { param: 'tokens' });
      }
      await answer(request, reply, tokens.length, async () => {
        const content = await inTurns(tokenizer.decodeSteps(Int32Array.from(tokens)));
        return { body: { content }, tokens: tokens.length };
      });
    },
  });
}

/** A token's text, or its bytes where these are not whole characters. */
function pieceOf(bytes: Uint8Array): string | number[] {
  const text = Buffer.from(bytes).toString('utf8');
  return Buffer.from(text).equals(bytes) ? text : [...bytes];
}

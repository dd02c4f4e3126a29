/**
 * What the acceptance suite knows of the API: for every route a request that must be answered, and what must stand in
 * the answer; for those that stream also the stream. The refusals are the same for all routes (suite.ts).
 * `test/bench/acceptance` fails for a route of docs/openapi.json that is not here.
 */
import assert from 'node:assert/strict';
import { type Answer, type Call, eventsOf, excerpt, objectOf } from './call.ts';

/** What earlier answers of the same run have told, and what the suite chose. */
export interface Known {
  /** Name of the served model. */
  model: string;
  /** Id of a completion. */
  completion: string;
  /** Tokens of {@link PREFIX}. */
  tokens: readonly number[];
  /** Repository that the suite indexes; undefined in a run that only reads. */
  readonly repo: string | undefined;
}

type Body = (known: Known) => object;
type Check = (answer: Answer, known: Known) => void;

export interface RouteCases {
  /** The route as docs/openapi.json has it: `POST /v1/completions`. */
  readonly route: string;
  /** The route's path with its parameters filled in; the route's own where not given. */
  readonly path?: (known: Known) => string;
  readonly body?: Body;
  /** @throws AssertionError unless the answer of status 200 is what the route promises. */
  readonly check: Check;
  /** Checks the answer to the same body with `stream: true`. */
  readonly checkStream?: Check;
  /** The route needs no key, whatever the deployment is. */
  readonly open?: true;
  /** The route changes the index: it is left out of runs that only read. */
  readonly writes?: true;
  /** Status and code of the refusal where there is no such thing, as in a run that has indexed nothing. */
  readonly refused?: (known: Known) => readonly [status: number, code: string] | undefined;
}

const PREFIX = 'def total(cart):\n    rate = 0.19\n    return ';
const SUFFIX = '\n\n\ndef main():\n    print(total([]))\n';
/** Output tokens of each completion: enough for a stream to have more than one part. */
const TOKENS = 4;
const FILES = [
  { path: 'shop/cart.py', content: 'class Cart:\n    def __init__(self):\n        self.items = []\n' },
  { path: 'shop/rates.py', content: 'RATES = {"de": 0.19}\n\n\ndef rate_of(country):\n    return RATES[country]\n' },
];

const text = (value: unknown, name: string): string => {
  assert.equal(typeof value, 'string', `${name} is not a text: ${excerpt(JSON.stringify(value) ?? 'nothing')}`);
  return value as string;
};
const list = (value: unknown, name: string): readonly Record<string, unknown>[] => {
  assert.ok(Array.isArray(value), `${name} is not a list: ${excerpt(JSON.stringify(value) ?? 'nothing')}`);
  return value;
};
const has = (name: string, type: 'string' | 'number' | 'boolean' | 'object'): Check => {
  return (answer) =>
    assert.equal(typeof objectOf(answer)[name], type, `${name} is not of type ${type}: ${excerpt(answer.text)}`);
};

/** The choices of an answer in OpenAI's shape. */
function checkChoices(body: Record<string, unknown>, wanted: string): void {
  assert.equal(body['object'], wanted, `object is ${body['object']}`);
  const [choice] = list(body['choices'], 'choices');
  assert.ok(choice, 'the answer has not a single choice');
  const message = (choice['message'] ?? {}) as { content?: unknown };
  text(wanted === 'chat.completion' ? message.content : choice['text'], 'the text of the choice');
  assert.match(text(choice['finish_reason'], 'finish_reason'), /^(stop|length)$/);
  const usage = (body['usage'] ?? {}) as { prompt_tokens?: unknown; completion_tokens?: unknown };
  assert.ok(Number(usage.prompt_tokens) > 0, 'usage.prompt_tokens is not above 0');
  assert.ok(Number(usage.completion_tokens) <= TOKENS, `more than ${TOKENS} tokens came`);
}
const choices =
  (wanted: string): Check =>
  (answer, known) => {
    const body = objectOf(answer);
    checkChoices(body, wanted);
    known.completion = text(body['id'], 'id');
  };

/** A stream of events in OpenAI's shape: parts with one id, a reason at the end, and `[DONE]`. */
const choiceStream: Check = (answer) => {
  const events = eventsOf(answer);
  assert.equal(events.at(-1), '[DONE]', 'the stream does not end with [DONE]');
  const parts = events.slice(0, -1).map((event) => objectOf({ text: event }));
  assert.ok(parts.length > 0, 'the stream has no parts');
  assert.equal(new Set(parts.map(({ id }) => id)).size, 1, 'the parts have different ids');
  const ends = parts.flatMap((part) => list(part['choices'], 'choices').map(({ finish_reason }) => finish_reason));
  assert.equal(ends.filter(Boolean).length, 1, 'not exactly one part says why the completion ended');
};

/** A stream of llama.cpp, which the last event ends. */
const llamaStream: Check = (answer) => {
  const parts = eventsOf(answer).map((event) => objectOf({ text: event }));
  assertLastAlone(parts.map(({ stop }) => stop === true));
  for (const part of parts) text(part['content'], 'content');
};

/** A stream of Ollama: lines of JSON, of which the last is done. */
const ollamaStream: Check = (answer) => {
  const parts = answer.text
    .trim()
    .split('\n')
    .map((line) => objectOf({ text: line }));
  assertLastAlone(parts.map(({ done }) => done === true));
  for (const part of parts) text(part['response'], 'response');
};

const assertLastAlone = (ends: readonly boolean[]) =>
  assert.ok(ends.at(-1) && ends.indexOf(true) === ends.length - 1, 'the last part alone must say that it is the last');

const completion: Body = ({ model }) => ({ model, prompt: PREFIX, suffix: SUFFIX, max_tokens: TOKENS, temperature: 0 });
const openAi = { body: completion, check: choices('text_completion'), checkStream: choiceStream };
const fim = { body: completion, check: choices('chat.completion'), checkStream: choiceStream };
/** With a prediction, of which usage says what became. */
const predicted: Body = (known) => ({
  ...completion(known),
  prediction: { type: 'content', content: '0.19 * sum(cart)' },
});
const predictedChoices: Check = (answer, known) => {
  openAi.check(answer, known);
  const { usage } = objectOf(answer) as { usage?: { completion_tokens_details?: Record<string, unknown> } };
  const details = usage?.completion_tokens_details ?? {};
  for (const name of ['accepted_prediction_tokens', 'rejected_prediction_tokens']) {
    assert.equal(typeof details[name], 'number', `usage.completion_tokens_details.${name} is not a number`);
  }
};
const named = ({ model }: Known) => encodeURIComponent(model);
const readiness = (status: string): Check => {
  return (answer) => assert.equal(objectOf(answer)['status'], status, `it says ${excerpt(answer.text)}`);
};
const repoPath = ({ repo }: Known) => `/v1/repos/${repo ?? 'nothing-that-is-indexed'}`;

/** In the order in which they are asked: a repository is indexed before it is shown, and removed at the end. */
export const ROUTES: readonly RouteCases[] = [
  { route: 'GET /livez', open: true, check: readiness('live') },
  { route: 'GET /readyz', open: true, check: readiness('ready') },
  { route: 'GET /health', open: true, check: readiness('ok') },
  { route: 'GET /version', check: has('version', 'string') },
  {
    route: 'GET /metrics',
    check: ({ text }) => assert.match(text, /^vllm:num_requests_waiting\b/m, 'vllm:num_requests_waiting is missing'),
  },
  {
    route: 'GET /v1/models',
    check: (answer, known) => {
      const [model] = list(objectOf(answer)['data'], 'data');
      known.model = text(model?.['id'], 'the id of the model');
    },
  },
  {
    route: 'GET /v1/models/{id}',
    path: (known) => `/v1/models/${named(known)}`,
    check: (answer, { model }) => assert.equal(objectOf(answer)['id'], model),
  },
  { route: 'POST /v1/completions', ...openAi, body: predicted, check: predictedChoices },
  { route: 'POST /beta/completions', ...openAi },
  {
    route: 'POST /v1/engines/{engine}/completions',
    path: (known) => `/v1/engines/${named(known)}/completions`,
    ...openAi,
  },
  {
    route: 'POST /v1/chat/completions',
    body: ({ model }) => ({ model, messages: [{ role: 'user', content: PREFIX }], max_tokens: TOKENS }),
    check: choices('chat.completion'),
    checkStream: choiceStream,
  },
  { route: 'POST /v1/fim/completions', ...fim },
  { route: 'POST /fim/completions', ...fim },
  {
    route: 'POST /infill',
    body: () => ({ input_prefix: PREFIX, input_suffix: SUFFIX, n_predict: TOKENS }),
    check: has('content', 'string'),
    checkStream: llamaStream,
  },
  {
    route: 'POST /completion',
    body: () => ({ prompt: PREFIX, n_predict: TOKENS }),
    check: has('content', 'string'),
    checkStream: llamaStream,
  },
  { route: 'GET /props', check: has('total_slots', 'number') },
  { route: 'GET /slots', check: ({ text }) => void list(JSON.parse(text), 'the answer') },
  {
    route: 'POST /tokenize',
    body: () => ({ content: PREFIX }),
    check: (answer, known) => {
      known.tokens = list(objectOf(answer)['tokens'], 'tokens').map(Number);
      assert.ok(known.tokens.length > 0 && known.tokens.every(Number.isSafeInteger), 'tokens are no token ids');
    },
  },
  {
    route: 'POST /detokenize',
    body: ({ tokens }) => ({ tokens }),
    check: (answer) => assert.equal(objectOf(answer)['content'], PREFIX, 'the text did not come back as it went in'),
  },
  {
    route: 'POST /api/generate',
    // Ollama streams unless it is told not to.
    body: ({ model }) => ({ model, prompt: PREFIX, stream: false, options: { num_predict: TOKENS } }),
    check: (answer) => assert.equal(objectOf(answer)['done'], true, 'the answer is not done'),
    checkStream: ollamaStream,
  },
  { route: 'GET /api/version', check: has('version', 'string') },
  {
    route: 'GET /api/tags',
    check: (answer) => assert.equal(list(objectOf(answer)['models'], 'models').length, 1, 'not one model is served'),
  },
  { route: 'POST /api/show', body: ({ model }) => ({ model }), check: has('capabilities', 'object') },
  { route: 'GET /v1/health', check: has('model', 'string') },
  { route: 'POST /v1/health', check: has('model', 'string') },
  {
    route: 'POST /v1/events',
    body: ({ completion }) => ({ type: 'view', completion_id: completion, choice_index: 0 }),
    check: ({ text }) => assert.equal(text, ''),
  },
  {
    route: 'PUT /v1/repos/{*}',
    path: repoPath,
    body: () => ({ files: FILES }),
    writes: true,
    check: (answer) => assert.equal(Number(objectOf(answer)['files']), FILES.length, `it says ${excerpt(answer.text)}`),
  },
  {
    route: 'GET /v1/repos/{*}',
    path: repoPath,
    refused: ({ repo }) => (repo === undefined ? [404, 'repo_not_found'] : undefined),
    check: (answer, { repo }) => assert.equal(objectOf(answer)['repo'], repo),
  },
  {
    route: 'GET /v1/repos',
    check: (answer, { repo }) => {
      const names = list(objectOf(answer)['data'], 'data').map((entry) => entry['repo']);
      if (repo !== undefined) assert.ok(names.includes(repo), `${repo} was indexed and is not in the list`);
    },
  },
  { route: 'GET /v1/rollout', check: has('phase', 'string') },
  {
    // A rollout that is under way is not touched: no gateway has such a bundle.
    route: 'POST /v1/rollout',
    body: () => ({ action: 'start', bundle: '/no/such/bundle', indexer: '' }),
    refused: () => [400, 'invalid_request'],
    check: () => {},
  },
  { route: 'DELETE /v1/repos/{*}', path: repoPath, writes: true, check: (answer) => void objectOf(answer) },
];

/** The call that must be answered. @param stream asks for the answer in parts. */
export function callOf({ route, path, body }: RouteCases, known: Known, stream = false): Call {
  const [method, url] = route.split(' ') as [Call['method'], string];
  const sent = body?.(known);
  return {
    method,
    path: path?.(known) ?? url,
    ...(sent !== undefined && { body: stream ? { ...sent, stream: true } : sent }),
  };
}

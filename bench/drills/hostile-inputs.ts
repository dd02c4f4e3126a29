/**
 * The drill of inputs that are made to be slow: every field of every body at the largest size that a body may have (see
 * hostile-fields.ts), texts that are slow to read in the fields that take the longest ones, JSON that is slow to parse,
 * and the names, parameters, headers and uploads of the other endpoints. Whatever is sent, no turn of the gateway's
 * event loop may take longer than 50 ms, for all streams of all clients wait for the end of a turn. The processes of a
 * drill share the cores of the machine, so the gateway gets the priority where this process may give it; it is judged
 * against the same traffic without such inputs, and not at all where that is late by as much already.
 */
import { setPriority } from 'node:os';
import { json as jsonOf, text as textOf } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import { MAX_OVERLAY_CHARACTERS, MAX_OVERLAY_FILES } from '../../services/gateway/context/overlay.ts';
import { STOP_PLACES } from '../../services/gateway/request.ts';
import { sendRequest } from '../../services/http-call.ts';
import type { Fleet } from './fleet.ts';
import { type Description, fieldBodies } from './hostile-fields.ts';
import type { Scene } from './scene.ts';
import { TIMEOUT_MS } from './streams.ts';

/** The most that an input may add to the longest turn of the event loop, in ms. */
const LONGEST_TURN_MS = 50;
/** Bytes of a body; the gateway takes 4 MiB. */
const BYTES = 4 * 1024 * 1024 - 1024;
/** Scrapes of the gateway without hostile inputs, a second apart. */
const CALM_SCRAPES = 5;

const times = (part: string, spent = 0) =>
  part.repeat(Math.floor((BYTES - spent) / Buffer.byteLength(JSON.stringify(part).slice(1, -1))));
const list = (part: string) => `[${`${part},`.repeat(Math.floor(BYTES / (part.length + 1)) - 1)}${part}]`;
/** Text in which hardly a word occurs twice. */
const noise = (length = BYTES, seed = 1) => {
  const words: string[] = [];
  for (let [size, state] = [0, seed]; size < length; size += words.at(-1)!.length) {
    state = (state * 48_271) % 0x7fff_ffff;
    words.push(state.toString(36));
  }
  return words.join('').slice(0, length);
};

const TEXTS: readonly [name: string, text: () => string][] = [
  ['one letter', () => times('a')],
  ['one word after the other', () => times('word = f(x)\n')],
  ['noise', () => noise()],
  ['spaces', () => times(' ')],
  ['line ends', () => times('\r\n')],
  ['digits', () => times('1')],
  ['Chinese', () => times('漢字語')],
  ['emoji', () => times('😀')],
  ['accents', () => times('\u0301\u0323')],
  ['NUL', () => times('\0')],
  ['names of tokens', () => times('<|fim_middle|>')],
  ['beginnings of names of tokens', () => times('<|fim_middl')],
];

/** The largest overlay that is read, and the longest text that `/tokenize` takes. */
const overlay = (text: string) => text.slice(0, MAX_OVERLAY_CHARACTERS);
const CUT = { truncate_prompt_tokens: -1 };
/** Gives back the prompt with as much about it as may be asked for. */
const ECHOED = { echo: true, logprobs: 5, max_tokens: 0, return_token_ids: true };
const many = <T>(count: number, of: (i: number) => T) => Array.from({ length: count }, (_, i) => of(i));

/** Bodies of completions by name. Each is made when it is sent: together they would take much memory. */
function* hostileBodies(): Generator<readonly [name: string, body: string]> {
  const json = (body: object) => JSON.stringify({ prompt: 'x', max_tokens: 1, ...body });
  for (const [name, text] of TEXTS) {
    yield [`prompt of ${name}`, json({ prompt: text() })];
    yield [`prompt of ${name}, cut`, json({ prompt: text(), truncate_prompt_tokens: -1 })];
    yield [`prompt of ${name}, cut and echoed`, json({ prompt: text(), truncate_prompt_tokens: -1, ...ECHOED })];
    const half = text().slice(0, text().length / 2);
    yield [`suffix of ${name}`, json({ prompt: half, suffix: half, rag: { repo: 'shop', mode: 'text' } })];
    yield [`rag.files of ${name}`, json({ rag: { repo: 'shop', files: [{ path: 'a.py', text: overlay(text()) }] } })];
    for (const stop_at of STOP_PLACES) {
      yield [`${stop_at} after ${name}`, json({ prompt: half, suffix: half, stop_at, ...CUT, max_tokens: 8 })];
    }
  }
  const files = many(MAX_OVERLAY_FILES, (i) => ({ path: `f${i}.py`, text: noise(4_000, i + 1) }));
  yield ['as many rag.files as fit', json({ rag: { files } })];
  yield ['a long field that there is not', json({ nonsense: times('k') })];
  yield ['long rag.path', json({ rag: { repo: 'shop', path: times('../') } })];
  yield ['a prompt of 128 texts', json({ prompt: many(128, (i) => noise(32_000, i + 1)), truncate_prompt_tokens: 9 })];
  yield ['a prompt of 100,000 ids', json({ prompt: many(100_000, (i) => i % 4_000), truncate_prompt_tokens: -1 })];
  yield ['a prompt of as many ids as fit', `{"prompt":${list('70')},"truncate_prompt_tokens":-1}`];
  yield ['logit_bias', json({ logit_bias: Object.fromEntries(many(1_024, (i) => [i, -1.5])) })];
  yield ['too much logit_bias', json({ logit_bias: Object.fromEntries(many(300_000, (i) => [i, 1])) })];
  yield ['stop strings', json({ stop: many(16, (i) => `${'a'.repeat(255)}${i % 10}`), max_tokens: 64 })];
  yield ['many stop strings', `{"prompt":"x","stop":${list('"a"')}}`];
  yield ['stop_token_ids', `{"prompt":"x","stop_token_ids":${list('1')}}`];
  yield ['nested brackets', `${'['.repeat(BYTES / 2)}${']'.repeat(BYTES / 2)}`];
  yield ['arrays', `{"prompt":${list('[1]')}}`];
  yield ['fractions', `{"prompt":${list('2.4703282292062327208e-324')}}`];
  yield ['one number', `{"seed":${'9'.repeat(BYTES)}}`];
  yield ['fields', `{${many(300_000, (i) => `"k${i}":1`).join(',')}}`];
  yield ['one field many times', `{${many(300_000, () => '"n":1').join(',')}}`];
  yield ['escaped fields', `{${many(200_000, (i) => `"\\u0061${i}":1`).join(',')}}`];
  yield ['white space', `{"prompt":"x"${' '.repeat(BYTES)}}`];
}

/** Texts that are slow to read, in the fields of editors' bodies that take the longest ones, by name. */
function* hostileEditors(): Generator<readonly [name: string, request: HostileRequest]> {
  const post = (path: string, body: object): HostileRequest => ({
    method: 'POST',
    path,
    headers: JSON_BODY,
    body: JSON.stringify(body),
  });
  for (const [name, text] of TEXTS) {
    const input_extra = [{ filename: 'a.py', text: text() }];
    yield [`input_extra of ${name}`, post('/infill', { prompt: 'x', n_predict: 1, input_extra })];
    const declarations = [{ filepath: 'a.py', body: text() }];
    yield [`declarations of ${name}`, post('/v1/completions', { segments: { prefix: 'x', declarations } })];
    yield [`content of ${name}`, post('/tokenize', { content: overlay(text()) })];
  }
}

interface HostileRequest {
  readonly method: 'GET' | 'POST' | 'PUT' | 'DELETE';
  readonly path: string;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: string | Buffer;
}

/** Characters of a name in a path, of a parameter or of a header: Node takes 16 KiB of all of them together. */
const LONG_NAME = 14_000;
const JSON_BODY = { 'content-type': 'application/json' };
/** Names that are as long as a path allows, in forms that a check of names could take long for. */
const NAMES: readonly [name: string, text: string][] = [
  ['letters', 'a'.repeat(LONG_NAME)],
  ['parts', 'a/'.repeat(LONG_NAME / 2)],
  ['dots', '../'.repeat(LONG_NAME / 3)],
  ['dashes', '-_.'.repeat(LONG_NAME / 3)],
  ['escapes', '%2F'.repeat(LONG_NAME / 3)],
  ['escapes that are not complete', '%e2%82'.repeat(LONG_NAME / 6)],
];

/** Requests to the endpoints beside completions, and completions whose headers are hostile, by name. */
export function* hostileRequests(): Generator<readonly [name: string, request: HostileRequest]> {
  const body = JSON.stringify({ prompt: 'x', max_tokens: 1 });
  for (const [name, text] of NAMES) {
    yield [`a model's name of ${name}`, { method: 'GET', path: `/v1/models/${text}` }];
    yield [`a repository's name of ${name}`, { method: 'GET', path: `/v1/repos/${text}` }];
    yield [`an upload to a name of ${name}`, { method: 'PUT', path: `/v1/repos/${text}`, headers: JSON_BODY, body }];
    yield [`the removal of a name of ${name}`, { method: 'DELETE', path: `/v1/repos/${text}` }];
    yield [`a prefix of ${name}`, { method: 'POST', path: `/r/${text}/infill`, headers: JSON_BODY, body }];
    yield [`a parameter of ${name}`, { method: 'GET', path: `/v1/models?q=${text}` }];
  }
  for (const header of [
    'authorization',
    'x-request-id',
    'x-request-timeout-ms',
    'content-encoding',
    'accept',
    'host',
    'origin',
    'x-api-key',
    'api-key',
    'x-session-id',
    'x-llavacode-repo',
    'x-llavacode-timeline',
  ]) {
    const headers = { ...JSON_BODY, [header]: 'gzip,'.repeat(LONG_NAME / 5) };
    yield [`a long ${header}`, { method: 'POST', path: '/v1/completions', headers, body }];
  }
  const type = { 'content-type': `application/json${';a=b'.repeat(LONG_NAME / 4)}` };
  yield ['a long content-type', { method: 'POST', path: '/v1/completions', headers: type, body }];
  const headers = { ...JSON_BODY, ...Object.fromEntries(many(900, (i) => [`x-${i}`, 'y'])) };
  yield ['many headers', { method: 'POST', path: '/v1/completions', headers, body }];
}

/** Uploads, which the gateway passes on to the indexer, by name. */
function* hostileUploads(): Generator<readonly [name: string, request: HostileRequest]> {
  const upload = (type: string, body: string | Buffer): HostileRequest => ({
    method: 'PUT',
    path: '/v1/repos/hostile',
    headers: { 'content-type': type },
    body,
  });
  const change = (path: string) => ({ path, content: 'x = 1' });
  const changes = (paths: readonly string[]) => JSON.stringify({ files: paths.map(change) });
  const strip = `/v1/repos/hostile?strip_components=${'9'.repeat(LONG_NAME)}`;
  yield ['a long strip_components', { ...upload('application/json', '{}'), path: strip }];
  yield ['an upload of one long path', upload('application/json', changes([times('a/')]))];
  yield ['an upload of many paths', upload('application/json', changes(many(60_000, (i) => `d${i % 99}/../f${i}.md`)))];
  yield ['an upload of brackets', upload('application/json', '['.repeat(BYTES))];
  yield ['an upload of zeros as tar', upload('application/x-tar', Buffer.alloc(BYTES))];
  yield ['an upload of noise as zip', upload('application/zip', noise())];
  yield ['an upload of noise as gzip', upload('application/gzip', noise())];
}

/** All hostile inputs by name. Each is made when it is sent. @param api the gateway's description of its routes. */
function* hostileInputs(api: Description): Generator<readonly [name: string, request: HostileRequest]> {
  for (const [name, body] of hostileBodies()) {
    yield [name, { method: 'POST', path: '/v1/completions', headers: JSON_BODY, body }];
  }
  for (const { path, field, value, body } of fieldBodies(api, BYTES)) {
    yield [`${path}, ${field}: ${value}`, { method: 'POST', path, headers: JSON_BODY, body }];
  }
  yield* hostileEditors();
  yield* hostileRequests();
  yield* hostileUploads();
}

/** Sends one hostile input after the other. @throws if one of them holds the event loop up, or is answered with 5xx. */
export async function sendHostileInputs({ fleet, mark }: Scene): Promise<string> {
  favourGateway(fleet);
  const calmMs = await longestCalmTurn(fleet);
  let longest = { name: 'nothing', ms: 0 };
  let sent = 0;
  for (const [name, request] of hostileInputs(await describedBy(fleet))) {
    await fleet.longestTurnMs(); // begins anew
    if (sent++ === 0) mark();
    const { status, body } = await send(fleet, request);
    const ms = await fleet.longestTurnMs();
    // The code tells a worker that this machine held up from a fault of the gateway.
    if (status >= 500) throw new Error(`${name} was answered with ${status}: ${body.slice(0, SHOWN)}`);
    if (ms > longest.ms) longest = { name, ms };
  }
  const turn = `${longest.ms.toFixed(0)} ms (${longest.name}), and ${calmMs.toFixed(0)} ms without them`;
  const found = `${sent} inputs; the longest turn of the event loop was ${turn}`;
  if (calmMs > LONGEST_TURN_MS) return `${found}; not judged, since this machine is too busy for it`;
  if (longest.ms > calmMs + LONGEST_TURN_MS) throw new Error(found);
  return found;
}

async function describedBy({ url }: Fleet): Promise<Description> {
  const signal = AbortSignal.timeout(TIMEOUT_MS);
  const answer = await sendRequest({ method: 'GET', url: `${url}/docs/json`, signal });
  return (await jsonOf(answer)) as Description;
}

/** Raises the gateway's priority. That needs root or CAP_SYS_NICE; without, workers that compute make turns longer. */
function favourGateway({ members }: Fleet): void {
  for (const { role, process } of members) {
    try {
      if (role === 'gateway' && process.pid !== undefined) setPriority(process.pid, -15);
    } catch {}
  }
}

async function longestCalmTurn(fleet: Fleet): Promise<number> {
  let longestMs = 0;
  await fleet.longestTurnMs();
  for (let scrape = 0; scrape < CALM_SCRAPES; scrape++) {
    await sleep(1_000);
    longestMs = Math.max(longestMs, await fleet.longestTurnMs());
  }
  return longestMs;
}

/** Characters of an answer that are shown. */
const SHOWN = 300;

/** @returns the answer, which is read to its end. */
async function send({ url }: Fleet, { path, ...request }: HostileRequest): Promise<{ status: number; body: string }> {
  const response = await sendRequest({ ...request, url: `${url}${path}`, signal: AbortSignal.timeout(TIMEOUT_MS) });
  return { status: response.statusCode ?? 0, body: await textOf(response) };
}

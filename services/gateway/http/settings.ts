/** The settings of the HTTP side: TLS, and what a client may send and how long it may take. */
import { z } from 'zod';
import type { ConfigOf } from '../../lib/process/config.ts';
import { file, flag, milliseconds, paths, whole } from '../../lib/process/setting-types.ts';
import { UPLOAD_SETTINGS } from '../../lib/rag/settings.ts';
import { isNetwork } from './networks.ts';

/** Origins as browsers write them. `*` is not one of them: with it any web page could use a gateway without keys. */
const origins = paths.refine(
  (list) => list.every((origin) => URL.canParse(origin) && new URL(origin).origin === origin),
  'must be origins such as https://ide.example.com, with commas between',
);

const networks = paths.refine((list) => list.every(isNetwork), 'must be addresses or networks such as 10.0.0.0/8');

const UNKNOWN_FIELDS = ['refuse', 'ignore'] as const;

export const HTTP_SETTINGS = {
  tlsCert: file.describe("PEM file of the gateway's certificate, its chain included; plain HTTP when empty"),
  tlsKey: file.describe('PEM file of the private key of --tls-cert'),
  bodyLimitBytes: whole(1024)
    .default(4 * 1024 * 1024)
    .describe('largest request body, in bytes after its content-encoding is undone'),
  maxConnections: whole(1)
    .default(4096)
    .describe('connections that the gateway holds at once; for one more, the one that has been idle longest is closed'),
  refusalsPerSecond: whole(1)
    .default(50)
    .describe(
      'refused requests of one tenant that are answered without delay, a second; further ones are held back for up ' +
        'to 1 s, so that whoever asks again at once does not take the gateway from the others',
    ),
  receiveTimeoutMs: milliseconds(1)
    .default(10_000)
    .describe(
      'time that a client gets to send the headers of a request, again for its body, and again for what is left ' +
        'of it after an early answer, in ms',
    ),
  slowReaderMs: milliseconds(1)
    .default(30_000)
    .describe('time for which a client may take nothing of an answer that waits for it, in ms'),
  keepAliveTimeoutMs: milliseconds(1)
    .default(620_000)
    .describe(
      'time that an idle connection is kept, in ms: longer than the load balancer in front keeps it (Google 600 ' +
        's); --receive-timeout-ms before a valid key',
    ),
  uploadTimeoutMs: milliseconds(1)
    .default(600_000)
    .describe('time that an upload of a repository may take, and longest silence of its indexer, in ms'),
  corsOrigins: origins.describe(
    'origins of web pages that may use the API (CORS), such as https://ide.example.com, with commas between; none when empty',
  ),
  unknownFields: z
    .enum(UNKNOWN_FIELDS)
    .default('refuse')
    .describe(
      'what POST /v1/completions does with fields that it does not know, and that may therefore change the answer: ' +
        'refuse or ignore (named in x-llavacode-ignored, as on the routes of editors); a value of a known field that ' +
        'would change the answer is refused in any case',
    ),
  metricsTokenFile: file.describe(
    'file of the token with which /metrics of the gateway is read, in place of a key: ' +
      'at least 16 characters (openssl rand -hex 32); none when empty',
  ),
  metricsNetworks: networks.describe(
    'addresses and networks, such as 10.0.0.0/8, from which /metrics of the gateway is read without a token, with commas between; ' +
      'with neither of both settings it needs a key with access admin, if there are keys',
  ),
  slotsRoute: flag
    .default(false)
    .describe("GET /slots, llama.cpp's, says how many slots there are and are busy, over all tenants"),
  rollouts: flag
    .default(false)
    .describe(
      'take part in rollouts: POST /v1/rollout has another bundle served beside this one (llavacode rollout). It names ' +
        'a folder of this machine, so give nobody a key with access admin who may not do that',
    ),
  adminPage: flag
    .default(false)
    .describe(
      'serve the operator page at /admin/: workers, hand-overs and recent requests of this gateway, indexes of all ' +
        'tenants, and completions in three modes side by side; where there are keys, it needs one whose entry says access admin',
    ),
  ...UPLOAD_SETTINGS,
};
export type HttpConfig = ConfigOf<typeof HTTP_SETTINGS>;

/** The workers: what waits, what each has to do, and the KV caches on their way between them. */
import type { WorkerBody } from '../services/gateway/http/admin-answers.ts';
import { Chart } from './chart.tsx';
import { count } from './format.ts';
import { HandOverMap } from './hand-overs.tsx';
import { Head } from './head.tsx';
import type { Live } from './live.ts';

export function Overview({ live }: { readonly live: Live }) {
  const { state, samples } = live;
  if (state === undefined) return <p>Waiting for the gateway's first event.</p>;
  const { queue, running, workers } = state;
  const decoders = workers.filter(({ role }) => role === 'decode');
  const sum = (of: (worker: WorkerBody) => number) => decoders.reduce((total, each) => total + of(each), 0);
  const [slots, free] = [sum((each) => each.slots), sum(({ free_slots }) => free_slots)];
  return (
    <>
      <dl class="figures">
        <Figure name="Waiting here" value={`${count(queue.prompts)} prompts`} more={`${count(queue.tokens)} tokens`} />
        <Figure name="Running here" value={count(total(running))} more={phasesOf(running)} />
        <Figure name="Decode slots" value={`${count(slots - free)} of ${count(slots)} busy`} more="all gateways" />
        <Figure
          name="KV in flight"
          value={`${count(state.hand_overs.reduce((all, { flying }) => all + flying, 0))} caches`}
          more={`${count(samples.at(-1)?.handedOver ?? 0)} landed in the last second`}
        />
      </dl>
      <HandOverMap live={live} />
      <div class="charts">
        <Chart
          title="Requests"
          samples={samples}
          series={[
            { label: 'waiting', of: ({ waiting }) => waiting, color: '--second' },
            { label: 'running', of: (sample) => sample.running, color: '--first' },
            { label: 'busy decode slots', of: ({ busySlots }) => busySlots, color: '--third' },
          ]}
        />
        <Chart
          title="Time to first token, ms"
          samples={samples}
          series={[{ label: 'median of the second', of: ({ ttftMs }) => ttftMs, color: '--first' }]}
        />
      </div>
      <WorkerTable workers={workers} />
    </>
  );
}

const total = (counts: Readonly<Record<string, number>>) => Object.values(counts).reduce((sum, each) => sum + each, 0);

/** How far the running requests are. */
function phasesOf(running: Readonly<Record<string, number>>): string {
  const phases = Object.entries(running).map(([event, number]) => `${number} ${event.replace('_', ' ')}`);
  return phases.length === 0 ? 'none' : phases.join(', ');
}

function Figure({ name, value, more }: { readonly name: string; readonly value: string; readonly more: string }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd>
        <b>{value}</b> <small>{more}</small>
      </dd>
    </div>
  );
}

const COLUMNS = ['Role', 'Address', 'State', 'Slots busy', 'Queue', 'Calls from here', 'Capacity', 'Speed', 'Device'];

function WorkerTable({ workers }: { readonly workers: readonly WorkerBody[] }) {
  return (
    <div class="wide">
      <table>
        <caption>Workers. What a worker says of itself counts the work of all gateways.</caption>
        <Head columns={COLUMNS} />
        <tbody>
          {workers.map((worker) => (
            <WorkerRow key={`${worker.arm} ${worker.role} ${worker.address}`} worker={worker} />
          ))}
        </tbody>
      </table>
    </div>
  );
}

function WorkerRow({ worker }: { readonly worker: WorkerBody }) {
  const { arm, role, address, usable, problem, slots, free_slots, queued, jobs, capacity, device } = worker;
  const rate = worker.prefill_tokens_per_second;
  return (
    <tr>
      <td>{arm === 'stable' ? role : `${role} (${arm})`}</td>
      <th scope="row">{address}</th>
      <td class={usable ? 'calm' : 'alarm'}>
        {usable ? 'usable' : problem}
        {worker.overdue_ms > 0 && `, ${Math.round(worker.overdue_ms)} ms late`}
      </td>
      <td>
        <meter min={0} max={Math.max(slots, 1)} value={slots - free_slots} aria-label={`busy slots of ${address}`} />{' '}
        {slots - free_slots} of {slots}
      </td>
      <td>
        {count(queued)} {role === 'prefill' ? 'tokens' : 'sequences'}
      </td>
      <td>{jobs}</td>
      <td>{count(capacity)} positions</td>
      <td>{rate > 0 ? `${count(Math.round(rate))} tokens/s` : '–'}</td>
      <td>{device}</td>
    </tr>
  );
}

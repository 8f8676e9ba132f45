"""What is done: `shards` (the format), `label` (audio to labels), `pretrain` (labels to a model), `evaluate`
(a model to features), and leaves that know none of them: `signal`, `config`. Read `label/base` first, then
`pretrain/loop`."""

# Prints how many messages wait in a queue, and the last lines of its consumer's log. FOLDER has both.
depth=$(cat "$1/depth")
log=$(tail -n 5 "$1/consumer.log" | sed 's/\\/\\\\/g; s/"/\\"/g' | awk '{printf "%s\\n", $0}')
broken='[]'
if [ "$depth" -gt 1000 ]; then
  broken="[{\"invariant\": \"queue_depth\", \"component\": \"invoices\", \"message\": \"$depth messages wait\", \"value\": $depth}]"
fi
printf '%s\n' "{\"violations\": $broken, \"evidence\": [{\"title\": \"Log of the consumer\", \"text\": \"$log\"}]}"

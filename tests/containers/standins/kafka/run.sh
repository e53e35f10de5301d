# KAFKA_LOG_DIRS becomes log.dirs, and so on; then the data folder is formatted if it is new, and Kafka starts.
set -eu
properties=/opt/kafka/config/server.properties
env | grep ^KAFKA_ | grep -v ^KAFKA_HEAP_OPTS | while IFS='=' read -r name value; do
  name=${name#KAFKA_}
  name=${name,,}
  echo "${name//_/.}=$value"
done > "$properties"
java="/opt/java/bin/java ${KAFKA_HEAP_OPTS:-} -XX:+UseSerialGC -XX:-UsePerfData -cp /opt/kafka/libs/*"
set -f
if [ ! -e "$KAFKA_LOG_DIRS/meta.properties" ]; then
  $java kafka.tools.StorageTool format --cluster-id=5L6g3nShT-eMCtK--X86sw --config "$properties"
fi
exec $java kafka.Kafka "$properties"
